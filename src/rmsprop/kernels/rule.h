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

// Storage formats: how a number of type S is read from and written to memory; `random` has 16 bits for those that dither.
template <class T>
struct Plain {
  using Raw = T;
  template <class S> static S decode(Raw x) { return S(x); }
  template <class S> static Raw encode(S x, uint32_t) { return Raw(x); }
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

// The upper half of a float32; rounds to nearest, ties to even. A NaN is cut off and stays one, for what arithmetic gives
// has its highest bit set.
struct BFloat16 {
  using Raw = uint16_t;
  template <class S> static S decode(Raw x) { return S(float_of(uint32_t(x) << 16)); }
  template <class S> static Raw encode(S x, uint32_t) {
    const uint32_t bits = bits_of(float(x));
    return Raw((bits + (x == x ? 0x7fff + (bits >> 16 & 1) : 0)) >> 16);
  }
};

struct Dithered : BFloat16 {  // rounds up as often as x lies near the upper neighbour, so that the mean is x
  template <class S> static Raw encode(S x, uint32_t random) {
    const uint32_t bits = bits_of(float(x)), finite = (bits & 0x7f800000) != 0x7f800000;
    return Raw((bits + (finite ? random : 0)) >> 16);
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
  template <class S> static Raw encode(S x, uint32_t) {
    const uint32_t bits = bits_of(float(x)), magnitude = bits & 0x7fffffff;
    const uint32_t normal = (magnitude + 0xc8000fff + ((magnitude >> 13) & 1)) >> 13;
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
    const uint32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
    const uint32_t half = magnitude >= 0x47800000 ? special : magnitude < 0x38800000 ? subnormal : normal;
    return Raw(half | (bits >> 16 & 0x8000));
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

template <class S, bool CENTERED>
inline S mean_square(S v, S m, const Scalars<S>& k) {
  S s = v * k.correction;
  if (CENTERED) {
    const S least = k.variance_floor * m * m;
    s = s < least ? least : s;
  }
  return s;
}

// The number of entries left alone. P, State: storage of p and g and of the state; S: dtype of the arithmetic.
template <class P, class State, class S, bool CENTERED, bool MOMENTUM, bool SKIP, bool DECAY, bool NEUTRAL = false>
int64_t update(char* pa, const char* ga, char* va, char* ma, char* ba, int64_t n, const Scalars<S> k, const Dice dice) {
  const S inf = std::numeric_limits<S>::infinity(), tiny = std::numeric_limits<S>::min(),
          largest = std::numeric_limits<S>::max();
  int64_t skipped = 0;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const S p = P::template decode<S>(read<P>(pa, i));
    const S v = State::template decode<S>(read<State>(va, i));
    S g = P::template decode<S>(read<P>(ga, i));
    S m = 0, m1 = 0, b = 0, b1 = 0, v1, step, p1;
    if (!NEUTRAL) g = k.sign * g;
    if (DECAY) g = g + k.coupled * p;
    if (CENTERED) {
      m = State::template decode<S>(read<State>(ma, i));
      const S gap = g - m;
      m1 = flush(m + k.rest * gap);
      v1 = k.beta * (v + k.rest * gap * gap);
    } else {
      v1 = k.beta * v + k.rest * g * g;
    }
    v1 = v1 < tiny ? S(0) : v1;
    const S s = NEUTRAL ? v1 : mean_square<S, CENTERED>(v1, m1, k);
    S d = std::sqrt(s + k.e_in) + k.e_out;
    if (!NEUTRAL) d = d < k.floor ? k.floor : d;
    S u = g / ((d == 0) | (g == 0) ? inf : d);  // the same numbers as in rule.py, whose derivative matters too
    if (!NEUTRAL) {
      u = u > k.clip ? k.clip : u;
      u = u < -k.clip ? -k.clip : u;
    }
    if (MOMENTUM) {
      b = State::template decode<S>(read<State>(ba, i));
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
    const uint32_t pv = dice.roll(i), mb = Dice::scramble(pv + 0x9e3779b9);  // computed where a format uses them
    write<P>(pa, i, P::template encode<S>(p1, pv >> 16));
    write<State>(va, i, State::template encode<S>(v1, pv & 0xffff));
    if (CENTERED) write<State>(ma, i, State::template encode<S>(m1, mb >> 16));
    if (MOMENTUM) write<State>(ba, i, State::template encode<S>(b1, mb & 0xffff));
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

// What a step did to some elements: sums of squares, and counts.
struct Sums {
  double gradient = 0, update = 0, weight = 0;
  int64_t dominated = 0, skipped = 0;

  void operator+=(const Sums& other) {
    gradient += other.gradient, update += other.update, weight += other.weight;
    dominated += other.dominated, skipped += other.skipped;
  }
};

// Adds up what a step that has just been made did. before: the parameters as they were, as stored.
template <class P, class State, class S, bool CENTERED, bool SKIP>
void measure(const char* before, char* const* at, int64_t n, const Scalars<S> k, Sums& sums) {
  constexpr int LANES = 8;  // sums side by side, which vectorise
  double gradient[LANES] = {}, update[LANES] = {}, weight[LANES] = {};
  int32_t dominated = 0;
  const auto add = [&](int64_t i, int lane) {
    const S p0 = P::template decode<S>(read<P>(before, i)), p1 = P::template decode<S>(read<P>(at[0], i));
    const S g = k.sign * P::template decode<S>(read<P>(at[1], i));
    const S v = State::template decode<S>(read<State>(at[2], i));
    const S m = CENTERED ? State::template decode<S>(read<State>(at[3], i)) : S(0);
    const S s = mean_square<S, CENTERED>(v, m, k);
    dominated += (s < k.e_in) | (s < k.e_out * k.e_out) | (s < k.floor * k.floor);
    const S whole = k.coupled != 0 ? g + k.coupled * p0 : g;
    const bool used = !SKIP || whole * whole <= std::numeric_limits<S>::max();
    const double x = used ? double(g) : 0, y = double(p1) - double(p0);
    gradient[lane] += x * x;
    update[lane] += y * y;
    weight[lane] += double(p1) * double(p1);
  };
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int lane = 0; lane < LANES; ++lane) add(i + lane, lane);
  for (; i < n; ++i) add(i, 0);
  for (int lane = 0; lane < LANES; ++lane)
    sums += {gradient[lane], update[lane], weight[lane], 0, 0};
  sums.dominated += dominated;
}

}  // namespace rmsprop
