// The rule for one contiguous run of elements: a transcription of `update` in rmsprop/rule.py, same names, same order.
//
// Equal to it bit for bit: every operation is one IEEE operation in the dtype S of the numbers, float or double
// (-ffp-contract=off keeps the compiler from fusing two), so all builds agree with each other and with NumPy.
// Operands may be unaligned, and g may be p itself: element i is read whole before it is written.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "number.h"

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

template <class T>
inline T read(const char* at, int64_t i) {
  T x;
  std::memcpy(&x, at + i * int64_t(sizeof x), sizeof x);
  return x;
}

template <class T>
inline void write(char* at, int64_t i, T x) {
  std::memcpy(at + i * int64_t(sizeof x), &x, sizeof x);
}

template <class S, class N>
inline N flush(N x) {
  const S tiny = std::numeric_limits<S>::min();
  return (x < tiny) & (x > -tiny) ? S(0) : x;
}

// Coefficients that do nothing: a loop may leave their operations out, for the same bits.
template <class S>
bool neutral(const Scalars<S>& k) {
  const S inf = std::numeric_limits<S>::infinity();
  return k.sign == 1 && k.correction == 1 && k.floor == 0 && k.clip == inf && k.clip_weights == inf;
}

template <bool CENTERED, class S, class N>
inline N mean_square(N v, N m, const Scalars<S>& k) {
  N s = v * k.correction;
  if (CENTERED) {
    const N least = k.variance_floor * m * m;
    s = s < least ? least : s;
  }
  return s;
}

// The average after a step: `update` in rmsprop/averaging.py.
template <class S>
struct Averaging {
  S rate;
  bool whole;

  explicit Averaging(double r) : rate(S(r)), whole(r == 1) {}

  template <class N>
  N operator()(N a, N p) const {
    const N moved = flush<S>(a + rate * (p - a));
    return whole ? p : a == p ? p : moved;
  }
};

// One element, or several in a vector: N is S or a vector of S. In three parts, so that a loop can take roots for some
// elements while it divides for others.
template <class N, class S, bool CENTERED, bool MOMENTUM, bool SKIP, bool DECAY, bool NEUTRAL>
struct Step {
  N g, sqrt, u;
  decltype(N() == N()) used;

  // Makes v and m the next ones.
  void root_of(N p, N gradient, N& v, N& m, const Scalars<S>& k) {
    const S tiny = std::numeric_limits<S>::min(), largest = std::numeric_limits<S>::max();
    N m1 = m, v1;
    g = gradient;
    if (!NEUTRAL) g = k.sign * g;
    if (DECAY) g = g + k.coupled * p;
    if (CENTERED) {
      const N gap = g - m;
      m1 = flush<S>(m + k.rest * gap);
      v1 = k.beta * (v + k.rest * gap * gap);
    } else {
      v1 = k.beta * v + k.rest * g * g;
    }
    v1 = v1 < tiny ? S(0) : v1;
    const N s = NEUTRAL && !CENTERED ? v1 : mean_square<CENTERED>(v1, m1, k);
    sqrt = root(s + k.e_in);
    if (SKIP) used = g * g <= largest;
    v = SKIP ? (used ? v1 : v) : v1;
    m = SKIP ? (used ? m1 : m) : m1;
  }

  void divide(const Scalars<S>& k) {
    const S inf = std::numeric_limits<S>::infinity();
    N d = sqrt + k.e_out;
    if (!NEUTRAL) d = d < k.floor ? k.floor : d;
    u = g / ((d == 0) | (g == 0) ? inf : d);  // the same numbers as in rule.py, whose derivative matters too
  }

  // Makes p and b the next ones.
  void move(N& p, N& b, const Scalars<S>& k) {
    N b1 = b, step, p1;
    if (!NEUTRAL) {
      u = u > k.clip ? k.clip : u;
      u = u < -k.clip ? -k.clip : u;
    }
    if (MOMENTUM) {
      b1 = flush<S>(k.mu * b + k.c1 * u);
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
    p = SKIP ? (used ? p1 : p) : p1;
    b = SKIP ? (used ? b1 : b) : b1;
  }
};

// The number of entries left alone. AVERAGE: aa and rate are those of an average.
template <class S, bool CENTERED, bool MOMENTUM, bool SKIP, bool DECAY, bool NEUTRAL, bool AVERAGE>
int64_t update(char* pa, const char* ga, char* va, char* ma, char* ba, int64_t n, const Scalars<S> k,
               char* aa, double rate) {
  const Averaging<S> towards(rate);
  int64_t skipped = 0;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    S p = read<S>(pa, i), v = read<S>(va, i), m = CENTERED ? read<S>(ma, i) : S(0), b = MOMENTUM ? read<S>(ba, i) : S(0);
    Step<S, S, CENTERED, MOMENTUM, SKIP, DECAY, NEUTRAL> x;
    x.root_of(p, read<S>(ga, i), v, m, k);
    x.divide(k);
    x.move(p, b, k);
    if (SKIP) skipped += count(!x.used);
    write(pa, i, p);
    write(va, i, v);
    if (CENTERED) write(ma, i, m);
    if (MOMENTUM) write(ba, i, b);
    if (AVERAGE) write(aa, i, towards(read<S>(aa, i), p));
  }
  return skipped;
}

// `update` for any number of elements at p, g, v, m, b and the average, those that there are, or null. Asks for memory in
// advance: the processor by itself looks less far the more there is to compute, and never past a page.
template <class S, bool CENTERED, bool MOMENTUM, bool SKIP, bool DECAY, bool NEUTRAL, bool AVERAGE>
int64_t step(char* const* at, int64_t n, const Scalars<S>& k, double rate) {
  constexpr int64_t SIZE = sizeof(S), AHEAD_BYTES = 2048, RUN_BYTES = 256, AHEAD = AHEAD_BYTES / SIZE;
  constexpr int OPERANDS = 6;
  const int64_t run = n > AHEAD ? RUN_BYTES / SIZE : n;
  char* here[OPERANDS] = {};
  int64_t skipped = 0;
  for (int64_t i = 0; i < n; i += run) {
    for (int o = 0; o < OPERANDS; ++o) {
      if (!at[o]) continue;
      here[o] = at[o] + i * SIZE;
      for (int64_t byte = 0; byte < RUN_BYTES && i + AHEAD < n; byte += 64)
        __builtin_prefetch(here[o] + AHEAD_BYTES + byte, 1);
    }
    skipped += update<S, CENTERED, MOMENTUM, SKIP, DECAY, NEUTRAL, AVERAGE>(
        here[0], here[1], here[2], here[3], here[4], std::min(n - i, run), k, here[5], rate);
  }
  return skipped;
}

// Averages after a step that has been made.
template <class S>
void average(const char* pa, char* aa, int64_t n, double rate) {
  const Averaging<S> towards(rate);
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) write(aa, i, towards(read<S>(aa, i), read<S>(pa, i)));
}

// Whether any entry of g is one that nonfinite="error" refuses.
template <class S, bool DECAY>
bool unusable(const char* pa, const char* ga, int64_t n, const Scalars<S> k) {
  int32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    const S p = read<S>(pa, i);
    S g = k.sign * read<S>(ga, i);
    if (DECAY) g = g + k.coupled * p;
    bad |= !(g * g <= std::numeric_limits<S>::max());
  }
  return bad;
}

// The squares of part of a row, summed in double, and how many entries take part: `square` in rmsprop/rowwise.py.
template <class S, bool SKIP, bool DECAY>
void add_squares(const char* pa, const char* ga, int64_t n, const Scalars<S> k, double& sum, int64_t& used) {
  constexpr int LANES = 8;  // sums side by side, which vectorise
  double lanes[LANES] = {};
  int32_t skipped = 0;
  const auto add = [&](int64_t i, int lane) {
    const S p = read<S>(pa, i);
    S g = k.sign * read<S>(ga, i);
    if (DECAY) g = g + k.coupled * p;
    const S square = g * g;
    const bool left = SKIP && !(square <= std::numeric_limits<S>::max());
    skipped += left;
    lanes[lane] += left ? 0.0 : double(square);
  };
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int lane = 0; lane < LANES; ++lane) add(i + lane, lane);
  for (; i < n; ++i) add(i, 0);
  for (double x : lanes) sum += x;
  used += n - skipped;
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

// Adds up what a step that has just been made did. before: the parameters as they were.
template <class S, bool CENTERED, bool SKIP>
void measure(const char* before, char* const* at, int64_t n, const Scalars<S> k, Sums& sums) {
  constexpr int LANES = 8;  // sums side by side, which vectorise
  double gradient[LANES] = {}, update[LANES] = {}, weight[LANES] = {};
  int32_t dominated = 0;
  const auto add = [&](int64_t i, int lane) {
    const S p0 = read<S>(before, i), p1 = read<S>(at[0], i), g = k.sign * read<S>(at[1], i), v = read<S>(at[2], i);
    const S m = CENTERED ? read<S>(at[3], i) : S(0);
    const S s = mean_square<CENTERED>(v, m, k);
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
