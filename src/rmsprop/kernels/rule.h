// The rule for one contiguous run of elements: a transcription of `update` in rmsprop/rule.py, same names, same order.
//
// Equal to it bit for bit: every operation is one IEEE operation in the dtype S of the numbers, float or double
// (-ffp-contract=off keeps the compiler from fusing two), so all builds agree with each other and with NumPy.
// Operands may be unaligned, and g may be p itself: of an element, p is written last.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "number.h"

namespace rmsprop {

enum Flag { CENTERED = 1, MOMENTUM = 2, SKIP = 4, DECAY = 8, KINDS = 16 };  // what loops are compiled for, and how many
enum Operand { P, G, V, M, B, A, OPERANDS };  // parameter, gradient, mean square, mean, buffer of momentum, average

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

template <int FLAGS, class S, class N>
inline N mean_square(N v, N m, const Scalars<S>& k) {
  N s = v * k.correction;
  if (FLAGS & CENTERED) {
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
template <class N, class S, int FLAGS, bool NEUTRAL>
struct Step {
  N g, root_mean, u;
  decltype(N() == N()) used;  // a bool, or one for each

  // Makes v and m the next ones.
  void root_of(N p, N gradient, N& v, N& m, const Scalars<S>& k) {
    const S tiny = std::numeric_limits<S>::min(), largest = std::numeric_limits<S>::max();
    N m1 = m, v1;
    g = gradient;
    if (!NEUTRAL) g = k.sign * g;
    if (FLAGS & DECAY) g = g + k.coupled * p;
    if (FLAGS & CENTERED) {
      const N gap = g - m;
      m1 = flush<S>(m + k.rest * gap);
      v1 = k.beta * (v + k.rest * gap * gap);
    } else {
      v1 = k.beta * v + k.rest * g * g;
    }
    v1 = v1 < tiny ? S(0) : v1;
    const N s = NEUTRAL && !(FLAGS & CENTERED) ? v1 : mean_square<FLAGS>(v1, m1, k);
    root_mean = root(s + k.e_in);
    if (FLAGS & SKIP) used = g * g <= largest;
    v = FLAGS & SKIP ? (used ? v1 : v) : v1;
    m = FLAGS & SKIP ? (used ? m1 : m) : m1;
  }

  void divide(const Scalars<S>& k) {
    const S inf = std::numeric_limits<S>::infinity();
    N d = root_mean + k.e_out;
    if (!NEUTRAL) d = d < k.floor ? k.floor : d;
    u = g / choose((d == 0) | (g == 0), N{} + inf, d);  // the same numbers as in rule.py, whose derivative matters too
  }

  // Makes p and b the next ones.
  void move(N& p, N& b, const Scalars<S>& k) {
    N b1 = b, step, p1;
    if (!NEUTRAL) {
      u = u > k.clip ? k.clip : u;
      u = u < -k.clip ? -k.clip : u;
    }
    if (FLAGS & MOMENTUM) {
      b1 = flush<S>(k.mu * b + k.c1 * u);
      step = k.c2 * b1 + k.c3 * u;
    } else {
      step = k.c3 * u;
    }
    if (FLAGS & DECAY)
      p1 = p - k.decoupled * p - step;
    else
      p1 = p - step;
    if (!NEUTRAL) {
      p1 = p1 > k.clip_weights ? k.clip_weights : p1;
      p1 = p1 < -k.clip_weights ? -k.clip_weights : p1;
    }
    p = FLAGS & SKIP ? (used ? p1 : p) : p1;
    b = FLAGS & SKIP ? (used ? b1 : b) : b1;
  }
};

// A step of n elements; the number of them left alone. `at` has an address for each operand that there is. AVERAGE: with a
// rate, for an average.
template <class S, int FLAGS, bool NEUTRAL, bool AVERAGE>
int64_t update(char* const* at, int64_t n, const Scalars<S> k, double rate) {
  char *pa = at[P], *ga = at[G], *va = at[V], *ma = at[M], *ba = at[B], *aa = at[A];
  const Averaging<S> towards(rate);
  int64_t skipped = 0;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    S p = read<S>(pa, i), v = read<S>(va, i);
    S m = FLAGS & CENTERED ? read<S>(ma, i) : S(0), b = FLAGS & MOMENTUM ? read<S>(ba, i) : S(0);
    Step<S, S, FLAGS, NEUTRAL> x;
    x.root_of(p, read<S>(ga, i), v, m, k);
    x.divide(k);
    x.move(p, b, k);
    if (FLAGS & SKIP) skipped += how_many(!x.used);
    write(pa, i, p);
    write(va, i, v);
    if (FLAGS & CENTERED) write(ma, i, m);
    if (FLAGS & MOMENTUM) write(ba, i, b);
    if (AVERAGE) write(aa, i, towards(read<S>(aa, i), p));
  }
  return skipped;
}

// `update` that asks for memory in advance: the processor by itself looks less far the more there is to compute, and never
// past a page. `at` is null where there is no such operand.
template <class S, int FLAGS, bool NEUTRAL, bool AVERAGE>
int64_t update_ahead(char* const* at, int64_t n, const Scalars<S>& k, double rate) {
  constexpr int64_t SIZE = sizeof(S), AHEAD_BYTES = 2048, RUN_BYTES = 256, AHEAD = AHEAD_BYTES / SIZE;
  const int64_t run = n > AHEAD ? RUN_BYTES / SIZE : n;
  char* here[OPERANDS] = {};
  int64_t skipped = 0;
  for (int64_t i = 0; i < n; i += run) {
    for (int o = P; o < OPERANDS; ++o) {
      if (!at[o]) continue;
      here[o] = at[o] + i * SIZE;
      for (int64_t byte = 0; byte < RUN_BYTES && i + AHEAD < n; byte += 64)
        __builtin_prefetch(here[o] + AHEAD_BYTES + byte, 1);
    }
    skipped += update<S, FLAGS, NEUTRAL, AVERAGE>(here, std::min(n - i, run), k, rate);
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
template <class S, int FLAGS>
bool unusable(const char* pa, const char* ga, int64_t n, const Scalars<S> k) {
  int32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    const S p = read<S>(pa, i);
    S g = k.sign * read<S>(ga, i);
    if (FLAGS & DECAY) g = g + k.coupled * p;
    bad |= !(g * g <= std::numeric_limits<S>::max());
  }
  return bad;
}

// The squares of part of a row, summed in double, and how many entries take part: `square` in rmsprop/rowwise.py.
template <class S, int FLAGS>
void add_squares(const char* pa, const char* ga, int64_t n, const Scalars<S> k, double& sum, int64_t& used) {
  constexpr int LANES = 8;  // sums side by side, which vectorise
  double lanes[LANES] = {};
  int32_t skipped = 0;
  const auto add = [&](int64_t i, int lane) {
    const S p = read<S>(pa, i);
    S g = k.sign * read<S>(ga, i);
    if (FLAGS & DECAY) g = g + k.coupled * p;
    const S square = g * g;
    const bool left = FLAGS & SKIP && !(square <= std::numeric_limits<S>::max());
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
template <class S, int FLAGS>
void measure(const char* before, char* const* at, int64_t n, const Scalars<S> k, Sums& sums) {
  constexpr int LANES = 8;  // sums side by side, which vectorise
  double gradient[LANES] = {}, update[LANES] = {}, weight[LANES] = {};
  int32_t dominated = 0;
  const auto add = [&](int64_t i, int lane) {
    const S p0 = read<S>(before, i), p1 = read<S>(at[P], i), g = k.sign * read<S>(at[G], i), v = read<S>(at[V], i);
    const S m = FLAGS & CENTERED ? read<S>(at[M], i) : S(0);
    const S s = mean_square<FLAGS>(v, m, k);
    dominated += (s < k.e_in) | (s < k.e_out * k.e_out) | (s < k.floor * k.floor);
    const S whole = k.coupled != 0 ? g + k.coupled * p0 : g;
    const bool used = !(FLAGS & SKIP) || whole * whole <= std::numeric_limits<S>::max();
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
