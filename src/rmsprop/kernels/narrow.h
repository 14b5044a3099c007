// The rule for 16-bit parameters with float32 state, in AVX2: the same `Step` of rule.h as everywhere, on eight floats at
// once, and so the same bits. Other builds pass such parameters through blocks of floats instead (formats.h).
//
// Each turn of the loop takes the roots of sixteen elements, divides for the sixteen before, and moves and rounds those before
// these, so that nothing in it waits for the divider. g may be p itself: it is read once, before p is written.
#pragma once

#include <algorithm>
#include <cstdint>

#include "number.h"
#include "rule.h"

#ifdef RMSPROP_EIGHT

namespace rmsprop {

constexpr int64_t SIXTEEN = 16;

inline __m128i load_eight(const char* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); }
inline void store_eight(char* at, __m128i x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(at), x); }
inline Eight eight(const char* at, int64_t i) { return read<Eight>(at + 4 * i, 0); }
inline void put(char* at, int64_t i, Eight x) { write(at + 4 * i, 0, x); }

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
    store_eight(at, _mm256_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT));
    store_eight(at + 16, _mm256_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT));
  }
};

// Sixteen elements on their way through the loop; F is one of the two formats.
template <class F, int FLAGS, bool NEUTRAL>
struct Sixteen {
  Step<Eight, float, FLAGS, NEUTRAL> half[2];

  void take_roots(char* const* at, int64_t i, const Scalars<float>& k) {
    for (auto& step : half) {
      Eight v = eight(at[V], i), m = FLAGS & CENTERED ? eight(at[M], i) : Eight{};
      step.root_of(FLAGS & DECAY ? F::decode(at[P] + 2 * i) : Eight{}, F::decode(at[G] + 2 * i), v, m, k);
      put(at[V], i, v);
      if (FLAGS & CENTERED) put(at[M], i, m);
      i += 8;
    }
  }

  void divide(const Scalars<float>& k) {
    for (auto& step : half) step.divide(k);
  }

  int move(char* const* at, int64_t i, const Scalars<float>& k, const Averaging<float>& towards) {
    Eight p[2];
    int skipped = 0;
    for (int h = 0; h < 2; ++h) {
      const int64_t j = i + 8 * h;
      Eight b = FLAGS & MOMENTUM ? eight(at[B], j) : Eight{};
      p[h] = F::decode(at[P] + 2 * j);
      half[h].move(p[h], b, k);
      if (FLAGS & SKIP) skipped += how_many(!half[h].used);
      if (FLAGS & MOMENTUM) put(at[B], j, b);
    }
    F::encode(p[0], p[1], at[P] + 2 * i);
    for (int64_t j = i; at[A] && j < i + SIXTEEN; j += 8)
      put(at[A], j, towards(eight(at[A], j), F::decode(at[P] + 2 * j)));  // of what is kept
    return skipped;
  }
};

// `update` of n elements, a multiple of sixteen; the number of them left alone. An address is null where there is no such operand.
template <class F, int FLAGS, bool NEUTRAL>
int64_t update_narrow(char* const* operands, int64_t n, const Scalars<float> k, double rate) {
  constexpr int64_t AHEAD = 512;  // memory is asked for so many elements in advance
  const Averaging<float> towards(rate);
  char* at[OPERANDS];
  std::copy(operands, operands + OPERANDS, at);
  Sixteen<F, FLAGS, NEUTRAL> rooted{}, divided{};
  int64_t skipped = 0;
  for (int64_t i = 0; i < n + 2 * SIXTEEN; i += SIXTEEN) {
    if (i >= 2 * SIXTEEN) skipped += divided.move(at, i - 2 * SIXTEEN, k, towards);
    divided = rooted;
    divided.divide(k);
    if (i >= n) continue;
    for (int o = P; o < OPERANDS && i + AHEAD < n; ++o)
      if (at[o]) __builtin_prefetch(at[o] + (o <= G ? 2 : 4) * (i + AHEAD), 1);
    rooted.take_roots(at, i, k);
  }
  return skipped;
}

}  // namespace rmsprop
#endif
