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

// What `BFloat16` and `Half` of formats.h do, for sixteen numbers in two vectors, and which of sixteen floats go with each.
//
// Of bfloat16 the first has 0-3 and 8-11, the second 4-7 and 12-15: interleaving with zeros makes them, and one instruction
// packs them again, all without crossing the halves of a register.
struct SixteenBFloat16 {
  static void decode(const char* at, Eight (&x)[2]) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    x[0] = Eight(_mm256_unpacklo_epi16(_mm256_setzero_si256(), bits));
    x[1] = Eight(_mm256_unpackhi_epi16(_mm256_setzero_si256(), bits));
  }
  static EightBits rounded(Eight x) {
    const EightBits bits = EightBits(x);
    return (bits + ((0x7fff + (bits >> 16 & 1)) & (x == x))) >> 16;
  }
  static void encode(const Eight (&x)[2], char* at) {
    const __m256i packed = _mm256_packs_epi32(__m256i(rounded(x[0])), __m256i(rounded(x[1])));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), packed);
  }
  static Eight get(const char* at, int half) {
    const float* x = reinterpret_cast<const float*>(at) + 4 * half;
    return _mm256_loadu2_m128(x + 8, x);
  }
  static void put(char* at, int half, Eight value) {
    float* x = reinterpret_cast<float*>(at) + 4 * half;
    _mm256_storeu2_m128(x + 8, x, value);
  }
};

struct SixteenHalf {
  static void decode(const char* at, Eight (&x)[2]) {
    for (int h = 0; h < 2; ++h) x[h] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at) + h));
  }
  static void encode(const Eight (&x)[2], char* at) {
    for (int h = 0; h < 2; ++h)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(at) + h, _mm256_cvtps_ph(x[h], _MM_FROUND_TO_NEAREST_INT));
  }
  static Eight get(const char* at, int half) { return read<Eight>(at, half); }
  static void put(char* at, int half, Eight value) { write(at, half, value); }
};

// Sixteen elements on their way through the loop; F is one of the two formats.
template <class F, int FLAGS, bool NEUTRAL, bool AVERAGE>
struct Sixteen {
  Step<Eight, float, FLAGS, NEUTRAL> half[2];

  void take_roots(char* const* at, int64_t i, const Scalars<float>& k) {
    Eight p[2] = {}, g[2];
    if (FLAGS & DECAY) F::decode(at[P] + 2 * i, p);
    F::decode(at[G] + 2 * i, g);
    for (int h = 0; h < 2; ++h) {
      Eight v = F::get(at[V] + 4 * i, h), m = FLAGS & CENTERED ? F::get(at[M] + 4 * i, h) : Eight{};
      half[h].root_of(p[h], g[h], v, m, k);
      F::put(at[V] + 4 * i, h, v);
      if (FLAGS & CENTERED) F::put(at[M] + 4 * i, h, m);
    }
  }

  void divide(const Scalars<float>& k) {
    for (auto& step : half) step.divide(k);
  }

  int move(char* const* at, int64_t i, const Scalars<float>& k, const Averaging<float>& towards) {
    Eight p[2];
    int skipped = 0;
    F::decode(at[P] + 2 * i, p);
    for (int h = 0; h < 2; ++h) {
      Eight b = FLAGS & MOMENTUM ? F::get(at[B] + 4 * i, h) : Eight{};
      half[h].move(p[h], b, k);
      if (FLAGS & SKIP) skipped += how_many(!half[h].used);
      if (FLAGS & MOMENTUM) F::put(at[B] + 4 * i, h, b);
    }
    F::encode(p, at[P] + 2 * i);
    if (!AVERAGE) return skipped;
    F::decode(at[P] + 2 * i, p);  // an average of what is kept
    for (int h = 0; h < 2; ++h) F::put(at[A] + 4 * i, h, towards(F::get(at[A] + 4 * i, h), p[h]));
    return skipped;
  }
};

// `update` of n elements, a multiple of sixteen; the number of them left alone. An address is null where there is no such operand.
template <class F, int FLAGS, bool NEUTRAL, bool AVERAGE>
int64_t update_narrow(char* const* operands, int64_t n, const Scalars<float> k, double rate) {
  constexpr int64_t AHEAD = 512;  // memory is asked for so many elements in advance
  const Averaging<float> towards(rate);
  char* at[OPERANDS];
  std::copy(operands, operands + OPERANDS, at);
  Sixteen<F, FLAGS, NEUTRAL, AVERAGE> rooted{}, divided{};
  int64_t skipped = 0;
  const auto ahead = [&](int64_t i) {
    __builtin_prefetch(at[P] + 2 * i, 1);
    __builtin_prefetch(at[G] + 2 * i, 1);
    __builtin_prefetch(at[V] + 4 * i, 1);
    if (FLAGS & CENTERED) __builtin_prefetch(at[M] + 4 * i, 1);
    if (FLAGS & MOMENTUM) __builtin_prefetch(at[B] + 4 * i, 1);
    if (AVERAGE) __builtin_prefetch(at[A] + 4 * i, 1);
  };
  for (int64_t i = 0; i < n + 2 * SIXTEEN; i += SIXTEEN) {
    if (i >= 2 * SIXTEEN) skipped += divided.move(at, i - 2 * SIXTEEN, k, towards);
    divided = rooted;
    divided.divide(k);
    if (i >= n) continue;
    ahead(i + AHEAD);
    rooted.take_roots(at, i, k);
  }
  return skipped;
}

}  // namespace rmsprop
#endif
