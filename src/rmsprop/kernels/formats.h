// Numbers of 16 bits: to float and back, rounded to nearest or at random. A run of them is converted at a time, between
// memory and a block in cache, for loops that work on floats alone; narrow.h has one that converts as it goes.
#pragma once

#include <cstdint>
#include <cstring>

#include "rule.h"
#include "table.h"

namespace rmsprop {

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// The upper half of a float32; rounds to nearest, ties to even. A NaN is cut off and stays one, for what arithmetic gives
// has its highest bit set.
struct BFloat16 {
  static float decode(uint16_t x) { return float_of(uint32_t(x) << 16); }
  static uint16_t encode(float x, uint32_t) {
    const uint32_t bits = bits_of(x);
    return uint16_t((bits + (x == x ? 0x7fff + (bits >> 16 & 1) : 0)) >> 16);
  }
};

struct Dithered : BFloat16 {  // rounds up as often as x lies near the upper neighbour, so that the mean is x
  static uint16_t encode(float x, uint32_t random) {
    const uint32_t bits = bits_of(x), finite = (bits & 0x7f800000) != 0x7f800000;
    return uint16_t((bits + (finite ? random : 0)) >> 16);
  }
};

// IEEE half precision by integer arithmetic, which vectorises on every machine (gcc leaves _Float16 scalar).
// After F. Giesen, float_to_half_fast3_rtne and half_to_float (public domain): ties to even, subnormals exact.
struct Half {
  static float decode(uint16_t x) {
    const uint32_t magnitude = uint32_t(x & 0x7fff) << 13, exponent = magnitude & 0x0f800000;
    const float normal = float_of(magnitude + (exponent == 0x0f800000 ? 0x70000000 : 0x38000000));
    const float subnormal = float_of(magnitude + 0x38800000) - float_of(0x38800000);
    return float_of(bits_of(exponent == 0 ? subnormal : normal) | uint32_t(x & 0x8000) << 16);
  }
  static uint16_t encode(float x, uint32_t) {
    const uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffff;
    const uint32_t normal = (magnitude + 0xc8000fff + ((magnitude >> 13) & 1)) >> 13;
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
    const uint32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
    const uint32_t half = magnitude >= 0x47800000 ? special : magnitude < 0x38800000 ? subnormal : normal;
    return uint16_t(half | (bits >> 16 & 0x8000));
  }
};

// Random numbers that depend on a key and an element's index alone: the same for any split of the work.
struct Dice {
  uint32_t first, a, b;  // index of element 0, and the key

  uint32_t roll(int64_t i) const { return scramble(scramble((first + uint32_t(i)) ^ a) + b); }

  // A bijection that changes half of the bits for any change of x: lowbias32 of C. Wellons' hash-prospector (public domain).
  static uint32_t scramble(uint32_t x) {
    x = (x ^ x >> 16) * 0x7feb352d;
    x = (x ^ x >> 15) * 0x846ca68b;
    return x ^ x >> 16;
  }
};

// splitmix64's finaliser (S. Vigna, public domain): makes keys out of seed, step and the upper half of an index.
inline uint64_t mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  return x ^ x >> 31;
}

// Which 16 of the bits that belong to an element round which operand: p, v, m, b, a.
template <int SLOT>
uint32_t sixteen(const Dice& dice, int64_t i) {
  uint32_t bits = dice.roll(i);
  for (int k = 0; k < SLOT / 2; ++k) bits = Dice::scramble(bits + 0x9e3779b9);
  return SLOT % 2 ? bits & 0xffff : bits >> 16;
}

template <class F>
void decode(const char* from, char* to, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) write(to, i, F::decode(read<uint16_t>(from, i)));
}

template <class F, int SLOT>
void encode(const char* from, char* to, int64_t n, const Dice& dice) {
  const Dice mine = dice;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) write(to, i, F::encode(read<float>(from, i), sixteen<SLOT>(mine, i)));
}

inline bool is_narrow(Dtype d) { return d == F16 || d == BF16; }

inline void decode(Dtype d, const char* from, char* to, int64_t n) {
  (d == F16 ? decode<Half> : decode<BFloat16>)(from, to, n);
}

// Numbers of any of these dtypes as float, or double where they are.
inline void load(Dtype d, const char* from, char* to, int64_t n) {
  if (is_narrow(d))
    decode(d, from, to, n);
  else
    std::memcpy(to, from, size_t(n * itemsize(d)));
}

// slot: 0 to 4 for p, v, m, b, a; negative rounds to nearest.
inline void encode(Dtype d, const char* from, char* to, int64_t n, const Dice& dice, int slot) {
  using Encode = void (*)(const char*, char*, int64_t, const Dice&);
  constexpr Encode dithered[] = {encode<Dithered, 0>, encode<Dithered, 1>, encode<Dithered, 2>, encode<Dithered, 3>,
                                 encode<Dithered, 4>};
  (slot >= 0 ? dithered[slot] : d == F16 ? encode<Half, 0> : encode<BFloat16, 0>)(from, to, n, dice);
}

}  // namespace rmsprop
