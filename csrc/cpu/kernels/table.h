// The last line of a file for an instruction set: compiles the kernels for it, and lists them.
#pragma once

#include "../_kernels.h"
#include "../simd/isas.h"
#include "attention.h"
#include "conv2d.h"
#include "conv2d_bwd.h"
#include "group_norm_silu.h"
#include "group_norm_silu_bwd.h"
#include "solver_update.h"
#include "upfirdn.h"

EDM_BEGIN
template <typename T>
constexpr NormKernels<T> norm_kernels{forward<T>, forward_last<T>, backward<T>, backward_last<T>};

extern const Kernels kernels;  // not in this file alone
constexpr Kernels kernels{
    attention_kernels,    conv2d_kernels,        conv2d_bwd_kernels,     norm_kernels<float>,
    norm_kernels<double>, solver_update_kernels, upfirdn_kernels<float>, upfirdn_kernels<double>,
};
EDM_END
