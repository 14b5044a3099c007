// The rule for one contiguous run of elements: a transcription of `update` in rmsprop/rule.py, same names, same order.
//
// Equal to it bit for bit: every operation is one IEEE operation in the dtype of the state (-ffp-contract=off keeps the
// compiler from fusing two), so SSE2, AVX2 and AVX-512 builds agree with each other and with NumPy.
// Operands may be unaligned, and g may be p itself: element i is read whole before it is written.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace rmsprop {

#define RMSPROP_SCALARS(X)                                                                       \
  X(sign) X(coupled) X(decoupled) X(beta) X(rest) X(correction) X(variance_floor) X(e_in) X(e_out) \
  X(floor) X(clip) X(mu) X(c1) X(c2) X(c3) X(clip_weights)

#define RMSPROP_FIELD(name) S name;
template <class S>
struct Scalars {
  RMSPROP_SCALARS(RMSPROP_FIELD)
};
#undef RMSPROP_FIELD

// Storage formats: how a number of type S is read from and written to memory.
template <class T>
struct Plain {
  using Raw = T;
  template <class S> static S decode(Raw x) { return S(x); }
  template <class S> static Raw encode(S x) { return Raw(x); }
};

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

struct BFloat16 {  // the upper half of a float32; rounds to nearest, ties to even
  using Raw = uint16_t;
  template <class S> static S decode(Raw x) { return S(float_of(uint32_t(x) << 16)); }
  template <class S> static Raw encode(S x) {
    const uint32_t bits = bits_of(float(x));
    return Raw(x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
};

// IEEE half precision by integer arithmetic, which vectorises on every machine (gcc leaves _Float16 scalar).
// After F. Giesen, float_to_half_fast3_rtne and half_to_float (public domain): ties to even, subnormals exact.
struct Half {
  using Raw = uint16_t;
  template <class S> static S decode(Raw x) {
    const uint32_t magnitude = uint32_t(x & 0x7fff) << 13, exponent = magnitude & 0x0f800000;
    const float normal = float_of(magnitude + (exponent == 0x0f800000 ? 0x70000000 : 0x38000000));
    const float subnormal = float_of(magnitude + 0x38800000) - float_of(0x38800000);
    return S(float_of(bits_of(exponent == 0 ? subnormal : normal) | uint32_t(x & 0x8000) << 16));
  }
  template <class S> static Raw encode(S x) {
    const uint32_t bits = bits_of(float(x)), magnitude = bits & 0x7fffffff;
    const uint32_t normal = (magnitude + 0xc8000fff + ((magnitude >> 13) & 1)) >> 13;
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
    const uint32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
    const uint32_t half = magnitude >= 0x47800000 ? special : magnitude < 0x38800000 ? subnormal : normal;
    return Raw(half | (bits >> 16 & 0x8000));
  }
};

template <class P>
inline typename P::Raw read(const char* at, int64_t i) {
  typename P::Raw x;
  std::memcpy(&x, at + i * int64_t(sizeof x), sizeof x);
  return x;
}

template <class P>
inline void write(char* at, int64_t i, typename P::Raw x) {
  std::memcpy(at + i * int64_t(sizeof x), &x, sizeof x);
}

template <class S>
inline S flush(S x) {
  const S tiny = std::numeric_limits<S>::min();
  return (x < tiny) & (x > -tiny) ? S(0) : x;
}

// Coefficients that do nothing in a rule without centering: the loop may leave their operations out, for the same bits.
template <class S>
bool neutral(const Scalars<S>& k) {
  const S inf = std::numeric_limits<S>::infinity();
  return k.sign == 1 && k.correction == 1 && k.floor == 0 && k.clip == inf && k.clip_weights == inf;
}

// The number of entries left alone. P: storage of p and g; S: dtype of the state and of the arithmetic.
template <class P, class S, bool CENTERED, bool MOMENTUM, bool SKIP, bool DECAY, bool NEUTRAL = false>
int64_t update(char* pa, const char* ga, char* va, char* ma, char* ba, int64_t n, const Scalars<S> k) {
  using State = Plain<S>;
  const S inf = std::numeric_limits<S>::infinity(), tiny = std::numeric_limits<S>::min(),
          largest = std::numeric_limits<S>::max();
  int64_t skipped = 0;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const S p = P::template decode<S>(read<P>(pa, i));
    const S v = read<State>(va, i);
    S g = P::template decode<S>(read<P>(ga, i));
    S m = 0, m1 = 0, b = 0, b1 = 0, v1, step, p1;
    if (!NEUTRAL) g = k.sign * g;
    if (DECAY) g = g + k.coupled * p;
    if (CENTERED) {
      m = read<State>(ma, i);
      const S gap = g - m;
      m1 = flush(m + k.rest * gap);
      v1 = k.beta * (v + k.rest * gap * gap);
    } else {
      v1 = k.beta * v + k.rest * g * g;
    }
    v1 = v1 < tiny ? S(0) : v1;
    S s = NEUTRAL ? v1 : v1 * k.correction;
    if (CENTERED) {
      const S least = k.variance_floor * m1 * m1;
      s = s < least ? least : s;
    }
    S d = std::sqrt(s + k.e_in) + k.e_out;
    if (!NEUTRAL) d = d < k.floor ? k.floor : d;
    S u = g / ((g == 0) | (d == 0) ? inf : d);
    if (!NEUTRAL) {
      u = u > k.clip ? k.clip : u;
      u = u < -k.clip ? -k.clip : u;
    }
    if (MOMENTUM) {
      b = read<State>(ba, i);
      b1 = flush(k.mu * b + k.c1 * u);
      step = k.c2 * b1 + k.c3 * u;
    } else {
      step = k.c3 * u;
    }
    if (DECAY)
      p1 = p - k.decoupled * p - step;
    else
      p1 = p - step;
    if (!NEUTRAL) {
      p1 = p1 > k.clip_weights ? k.clip_weights : p1;
      p1 = p1 < -k.clip_weights ? -k.clip_weights : p1;
    }
    if (SKIP) {
      const bool used = g * g <= largest;
      skipped += !used;
      p1 = used ? p1 : p;
      v1 = used ? v1 : v;
      m1 = used ? m1 : m;
      b1 = used ? b1 : b;
    }
    write<P>(pa, i, P::template encode<S>(p1));
    write<State>(va, i, v1);
    if (CENTERED) write<State>(ma, i, m1);
    if (MOMENTUM) write<State>(ba, i, b1);
  }
  return skipped;
}

// Whether any entry of g is one that nonfinite="error" refuses.
template <class P, class S, bool DECAY>
bool unusable(const char* pa, const char* ga, int64_t n, const Scalars<S> k) {
  int32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    const S p = P::template decode<S>(read<P>(pa, i));
    S g = P::template decode<S>(read<P>(ga, i));
    g = k.sign * g;
    if (DECAY) g = g + k.coupled * p;
    bad |= !(g * g <= std::numeric_limits<S>::max());
  }
  return bad;
}

}  // namespace rmsprop
