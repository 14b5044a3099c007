// What the rule computes with: float, double, or eight floats at once, by gcc's vectors and AVX2. Not by clang's, which have
// no `truth ? number : vector`.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__AVX2__) && defined(__F16C__) && defined(__GNUC__) && !defined(__clang__)
#define RMSPROP_EIGHT
#include <immintrin.h>
#endif

namespace rmsprop {

inline float root(float x) { return std::sqrt(x); }
inline double root(double x) { return std::sqrt(x); }
inline int how_many(bool truth) { return truth; }
inline float choose(bool c, float x, float y) { return c ? x : y; }
inline double choose(bool c, double x, double y) { return c ? x : y; }

#ifdef RMSPROP_EIGHT
using Eight = float __attribute__((vector_size(32)));  // gcc's own arithmetic: +, <, ?: and the like for each
using EightBits = int32_t __attribute__((vector_size(32)));  // what comparing two of them gives: -1 where true, or 0

inline Eight root(Eight x) { return _mm256_sqrt_ps(x); }
inline int how_many(EightBits truth) { return __builtin_popcount(unsigned(_mm256_movemask_ps(Eight(truth)))); }
inline Eight choose(EightBits c, Eight x, Eight y) { return Eight((c & EightBits(x)) | (~c & EightBits(y))); }
#endif

}  // namespace rmsprop
