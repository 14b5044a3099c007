// The plain rule for bfloat16 parameters with float32 state, in AVX2: `update` of rule.h where coefficients are `neutral`,
// with the same bits. Other builds, and other rules, pass such parameters through blocks of floats instead (formats.h).
//
// Sixteen elements are two vectors of floats: 0-3 and 8-11, and 4-7 and 12-15. Interleaving with zeros makes them, and one
// instruction packs them again, both without crossing lanes. Each turn of the loop takes the root of sixteen elements,
// divides for the sixteen before and rounds those before that, so that nothing in it waits for the divider.
#pragma once

#ifdef __AVX2__
#include <immintrin.h>

#include <cstdint>
#include <limits>

#include "rule.h"

namespace rmsprop {

class PlainBFloat16 {
 public:
  explicit PlainBFloat16(const Scalars<float>& k)
      : beta_(_mm256_set1_ps(k.beta)), rest_(_mm256_set1_ps(k.rest)), e_in_(_mm256_set1_ps(k.e_in)),
        e_out_(_mm256_set1_ps(k.e_out)), c3_(_mm256_set1_ps(k.c3)) {}

  // One step of the elements that are whole sixteens; how many that is.
  int64_t operator()(char* p, const char* g, char* v, int64_t n) const {
    const int64_t whole = n - n % SIXTEEN;
    __m256 low_root{}, high_root{}, low{}, high{};
    for (int64_t i = 0; i < whole + 2 * SIXTEEN; i += SIXTEEN) {
      const int64_t second = i - SIXTEEN, third = second - SIXTEEN;
      if (third >= 0) store(p + 2 * third, _mm256_packs_epi32(rounded(low), rounded(high)));
      if (second >= 0 && second < whole) {
        const __m256i p0 = load(p + 2 * second), g0 = load(g + 2 * second);
        low = stepped(low_floats(p0), low_floats(g0), low_root);
        high = stepped(high_floats(p0), high_floats(g0), high_root);
      }
      if (i >= whole) continue;
      ahead(p + 2 * i, g + 2 * i, v + 4 * i);
      const __m256i g0 = load(g + 2 * i);
      low_root = root(low_floats(g0), v + 4 * i, v + 4 * i + 32);
      high_root = root(high_floats(g0), v + 4 * i + 16, v + 4 * i + 48);
    }
    return whole;
  }

 private:
  static constexpr int64_t SIXTEEN = 16, AHEAD = 512;  // elements; memory is asked for that far in advance
  __m256 beta_, rest_, e_in_, e_out_, c3_;

  static __m256i load(const char* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
  static void store(char* at, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), x); }
  static __m256 low_floats(__m256i x) { return _mm256_castsi256_ps(_mm256_unpacklo_epi16(_mm256_setzero_si256(), x)); }
  static __m256 high_floats(__m256i x) { return _mm256_castsi256_ps(_mm256_unpackhi_epi16(_mm256_setzero_si256(), x)); }

  static void ahead(const char* p, const char* g, const char* v) {
    __builtin_prefetch(p + 2 * AHEAD, 1);
    __builtin_prefetch(g + 2 * AHEAD);
    __builtin_prefetch(v + 4 * AHEAD, 1);
  }

  // The next mean squares of four elements at `first` and four at `second`, and their roots.
  __m256 root(__m256 g, char* first, char* second) const {
    float *a = reinterpret_cast<float*>(first), *b = reinterpret_cast<float*>(second);
    const __m256 v = _mm256_loadu2_m128(b, a), tiny = _mm256_set1_ps(std::numeric_limits<float>::min());
    __m256 v1 = _mm256_add_ps(_mm256_mul_ps(beta_, v), _mm256_mul_ps(_mm256_mul_ps(rest_, g), g));
    v1 = _mm256_andnot_ps(_mm256_cmp_ps(v1, tiny, _CMP_LT_OQ), v1);
    _mm256_storeu2_m128(b, a, v1);
    return _mm256_sqrt_ps(_mm256_add_ps(v1, e_in_));
  }

  __m256 stepped(__m256 p, __m256 g, __m256 root) const {
    const __m256 zero = _mm256_setzero_ps(), inf = _mm256_set1_ps(std::numeric_limits<float>::infinity());
    const __m256 d = _mm256_add_ps(root, e_out_);
    const __m256 stays = _mm256_or_ps(_mm256_cmp_ps(d, zero, _CMP_EQ_OQ), _mm256_cmp_ps(g, zero, _CMP_EQ_OQ));
    const __m256 u = _mm256_div_ps(g, _mm256_blendv_ps(d, inf, stays));
    return _mm256_sub_ps(p, _mm256_mul_ps(c3_, u));
  }

  // BFloat16::encode, as 32-bit integers.
  static __m256i rounded(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x), number = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_ORD_Q));
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i half = _mm256_and_si256(_mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)), number);
    return _mm256_srai_epi32(_mm256_add_epi32(bits, half), 16);
  }
};

}  // namespace rmsprop
#endif
