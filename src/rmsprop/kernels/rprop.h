// Rprop for one contiguous run of elements: a transcription of `update` in rmsprop/rprop.py, same names, same order.
//
// What rule.h says of its loop holds for this one.
#pragma once

#include <cstdint>

#include "rule.h"

namespace rmsprop {

#define RMSPROP_RPROP_SCALARS(X) X(sign) X(shrink) X(grow) X(least) X(most)

#define RMSPROP_FIELD(name) S name;
template <class S>
struct RpropScalars {
  RMSPROP_RPROP_SCALARS(RMSPROP_FIELD)
};
#undef RMSPROP_FIELD

template <class S, bool FORGET, bool BACK, bool OPTAX>
void rprop(char* pa, const char* ga, char* sa, char* qa, int64_t n, const RpropScalars<S> k) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const S p = read<S>(pa, i), s = read<S>(sa, i), q = read<S>(qa, i);
    S g = k.sign * read<S>(ga, i);
    const S agree = g * q;
    S s1 = s * (agree > 0 ? k.grow : OPTAX | (agree < 0) ? k.shrink : S(1));
    s1 = s1 < k.least ? k.least : s1;
    s1 = s1 > k.most ? k.most : s1;
    if (OPTAX) s1 = agree == 0 ? s : s1;
    const bool turned = agree < 0;
    if (FORGET) g = turned ? S(0) : g;
    const S step = g > 0 ? s1 : g < 0 ? -s1 : OPTAX ? g : S(0);
    S move = step, q1 = g;
    if (OPTAX) {
      move = turned ? S(0) : q;
      q1 = step;
    } else if (FORGET && BACK) {
      move = turned ? (q > 0 ? -s : s) : step;
    }
    write(pa, i, p - move);
    write(sa, i, s1);
    write(qa, i, q1);
  }
}

}  // namespace rmsprop
