// What the driver of upfirdn and its kernels share.
#pragma once

#include "../upfirdn.h"

namespace edm {

template <typename T>
struct FilterTask {
    const Upfirdn& s;
    const T* f;  // (taps, taps), gain included
};

// of one instruction set, for work items [begin, end): planes of an image, or, channels last, rows (n, out_h) of
// pixels. The first index tells whether they are for up-sampling, the second whether there are four taps or two.
template <typename T>
struct UpfirdnKernels {
    using Filter = void (*)(const FilterTask<T>& task, int64_t begin, int64_t end);
    Filter planes[2][2], last[2][2];
};

}  // namespace edm
