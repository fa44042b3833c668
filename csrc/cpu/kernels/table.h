// The last line of a file for an instruction set: compiles the kernels for it, and lists its functions.
#pragma once

#include "../_kernels.h"
#include "../simd/isas.h"
#include "attention.h"
#include "conv2d.h"
#include "conv2d_bwd.h"
#include "group_norm_silu.h"
#include "group_norm_silu_bwd.h"
#include "pixel_norm.h"
#include "solver_update.h"
#include "upfirdn.h"

EDM_BEGIN
extern const Kernels kernels;  // not in this file alone
constexpr Kernels kernels{conv2d_kernels, conv2d_bwd_kernels};

static int conv2d_pack(const Conv2dPack& s, int threads) { return conv2d_pack_cpu(s, EDM_ISAS(EDM_PLACE_OF), threads); }
static int conv2d_fwd(const Conv2d& s, int threads) { return conv2d_fwd_cpu(s, EDM_ISAS(EDM_PLACE_OF), threads); }
static int conv2d_bwd(const Conv2dBwd& s, int threads) { return conv2d_bwd_cpu(s, EDM_ISAS(EDM_PLACE_OF), threads); }

constexpr Function function_list[] = {
    FUNCTION(attention_fwd, "_cpu", kForward),
    FUNCTION(attention_bwd, "_cpu", kBackward),
    FUNCTION(conv2d_pack, "_cpu", kForward),
    FUNCTION(conv2d_packed_size, "", kSize),
    FUNCTION(conv2d_fwd, "_cpu", kForward),
    FUNCTION(conv2d_fwd_workspace, "", kSize),
    FUNCTION(conv2d_bwd, "_cpu", kBackward),
    FUNCTION(conv2d_bwd_workspace, "", kSize),
    FUNCTION(group_norm_silu_fwd, "_cpu", kForward),
    FUNCTION(group_norm_silu_bwd, "_cpu", kBackward),
    FUNCTION(pixel_norm_fwd, "_cpu", kForward),
    FUNCTION(pixel_norm_bwd, "_cpu", kBackward),
    FUNCTION(solver_update_fwd, "_cpu", kForward),
    FUNCTION(upfirdn_fwd, "_cpu", kForward),
};
extern const Functions functions;
constexpr Functions functions{function_list, sizeof(function_list) / sizeof(Function)};
EDM_END
