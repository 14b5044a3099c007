// The rule for 16-bit parameters with float32 state, in AVX2: the same `Step` of rule.h as everywhere, on vectors of eight,
// and so the same bits. Other builds pass such parameters through blocks of floats instead (formats.h).
//
// Each turn of the loop takes the roots of sixteen elements, divides for the sixteen before and rounds those before that, so
// that nothing in it waits for the divider.
#pragma once

#include <cstdint>

#include "number.h"
#include "rule.h"

#ifdef RMSPROP_EIGHT

namespace rmsprop {

inline __m128i load_eight(const char* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); }
inline void store_eight(char* at, __m128i x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(at), x); }

// What `BFloat16` and `Half` of formats.h do, for eight numbers.
struct EightBFloat16 {
  static Eight decode(const char* at) { return Eight(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_eight(at)), 16)); }
  static EightBits rounded(Eight x) {
    const EightBits bits = EightBits(x);
    return bits + ((0x7fff + (bits >> 16 & 1)) & (x == x));
  }
  static void encode(Eight low, Eight high, char* at) {
    const __m256i mixed = _mm256_packs_epi32(__m256i(rounded(low) >> 16), __m256i(rounded(high) >> 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm256_permute4x64_epi64(mixed, 0b11011000));
  }
};

struct EightHalf {
  static Eight decode(const char* at) { return _mm256_cvtph_ps(load_eight(at)); }
  static void encode(Eight low, Eight high, char* at) {
    store_eight(at, rounded(low));
    store_eight(at + 16, rounded(high));
  }
  static __m128i rounded(Eight x) {
    const EightBits nan = (EightBits(x) & INT32_MIN) | 0x7fc00000;
    return _mm256_cvtps_ph(x == x ? x : Eight(nan), _MM_FROUND_TO_NEAREST_INT);
  }
};

// One step of the n elements, a multiple of 16, at p, g, v, m, b and the average, which may be null. F is one of the two
// formats. The number of entries left alone.
template <class F, bool CENTERED, bool MOMENTUM, bool SKIP, bool DECAY, bool NEUTRAL>
int64_t narrow_loop(char* const* at, int64_t n, const Scalars<float> k, double rate) {
  constexpr int64_t SIXTEEN = 16, AHEAD = 512;  // elements; memory is asked for that far in advance
  char *const pa = at[0], *const ga = at[1], *const va = at[2], *const ma = at[3], *const ba = at[4], *const aa = at[5];
  const Averaging<float> towards(rate);
  Step<Eight, float, CENTERED, MOMENTUM, SKIP, DECAY, NEUTRAL> rooted[2] = {}, divided[2] = {};
  int64_t skipped = 0;
  for (int64_t i = 0; i < n + 2 * SIXTEEN; i += SIXTEEN) {
    if (const int64_t third = i - 2 * SIXTEEN; third >= 0) {
      Eight p[2];
      for (int64_t j = third, half = 0; half < 2; j += 8, ++half) {
        Eight b = MOMENTUM ? read<Eight>(ba + 4 * j, 0) : Eight{};
        p[half] = F::decode(pa + 2 * j);
        divided[half].move(p[half], b, k);
        if (SKIP) skipped += count(!divided[half].used);
        if (MOMENTUM) write(ba + 4 * j, 0, b);
      }
      F::encode(p[0], p[1], pa + 2 * third);
      for (int64_t j = third, half = 0; aa && half < 2; j += 8, ++half)
        write(aa + 4 * j, 0, towards(read<Eight>(aa + 4 * j, 0), F::decode(pa + 2 * j)));
    }
    for (int half = 0; half < 2; ++half) {
      divided[half] = rooted[half];
      divided[half].divide(k);
    }
    if (i >= n) continue;
    __builtin_prefetch(pa + 2 * (i + AHEAD), 1);
    __builtin_prefetch(ga + 2 * (i + AHEAD));
    __builtin_prefetch(va + 4 * (i + AHEAD), 1);
    if (CENTERED) __builtin_prefetch(ma + 4 * (i + AHEAD), 1);
    if (MOMENTUM) __builtin_prefetch(ba + 4 * (i + AHEAD), 1);
    if (aa) __builtin_prefetch(aa + 4 * (i + AHEAD), 1);
    for (int64_t j = i, half = 0; half < 2; j += 8, ++half) {
      Eight v = read<Eight>(va + 4 * j, 0), m = CENTERED ? read<Eight>(ma + 4 * j, 0) : Eight{};
      rooted[half].root_of(DECAY ? F::decode(pa + 2 * j) : Eight{}, F::decode(ga + 2 * j), v, m, k);
      write(va + 4 * j, 0, v);
      if (CENTERED) write(ma + 4 * j, 0, m);
    }
  }
  return skipped;
}

}  // namespace rmsprop
#endif
