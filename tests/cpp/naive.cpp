// The naive reference of all kinds, which takes longer to compile than what the drivers do with it.
#include "naive.h"

namespace rnnkern::naive {

template void forward(const ForwardCall<float>&, const Index*);
template void forward(const ForwardCall<double>&, const Index*);
template GradientNorm backward(const BackwardCall<float>&, const Index*);
template GradientNorm backward(const BackwardCall<double>&, const Index*);

}  // namespace rnnkern::naive
