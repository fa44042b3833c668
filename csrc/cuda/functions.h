// Every function that runs on a GPU.
#pragma once

#include "../group_norm_silu.h"
#include "../solver_update.h"
#include "../upfirdn.h"

namespace edm {

constexpr Function kCudaFunctions[] = {
    FUNCTION(group_norm_silu_fwd_cuda, "", kCuda),
    FUNCTION(group_norm_silu_fwd_workspace_cuda, "", kCuda),
    FUNCTION(solver_update_fwd_cuda, "", kCuda),
    FUNCTION(upfirdn_fwd_cuda, "", kCuda),
};

}  // namespace edm
