// The kernels that are compiled once for each instruction set. kernels/table.h fills the table.
#pragma once

#include "../solver_update.h"
#include "_attention.h"
#include "_conv2d_bwd.h"
#include "_group_norm_silu.h"
#include "_upfirdn.h"
#include "_weights.h"

namespace edm {

struct SolverUpdateKernels {
    void (*update_float)(const SolverUpdate& s, int64_t begin, int64_t end);
    void (*update_double)(const SolverUpdate& s, int64_t begin, int64_t end);
};

struct Kernels {
    AttentionKernels attention;
    Conv2dKernels conv2d;
    Conv2dBwdKernels conv2d_bwd;
    NormKernels<float> norm_float;
    NormKernels<double> norm_double;
    SolverUpdateKernels solver_update;
    UpfirdnKernels<float> upfirdn_float;
    UpfirdnKernels<double> upfirdn_double;
};

const Kernels& kernels_of(int isa);  // of an instruction set that is available

}  // namespace edm
