// What an instruction set has: the functions that Python calls, and the kernels that the drivers of convolutions choose
// from. kernels/table.h fills both.
#pragma once

#include "../arguments.h"
#include "_conv2d_bwd.h"
#include "_weights.h"

namespace edm {

struct Kernels {
    Conv2dKernels conv2d;
    Conv2dBwdKernels conv2d_bwd;
};

const Kernels& kernels_of(int isa);  // of an instruction set that is available
Functions functions_of(int isa);     // in one order on all of them

}  // namespace edm
