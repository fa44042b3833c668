// Cuts attention into (image, head) times blocks of queries; a block goes over the keys in steps, with a running
// maximum and sum (Milakov & Gimelshein 2018; Dao et al. 2022), so that no matrix of pixels x pixels exists. How the
// work is cut depends on the sizes of one image alone: neither threads nor the batch change a bit.
#include <algorithm>

#include "_attention.h"
#include "_kernels.h"
#include "_scratch.h"
#include "simd/isas.h"

namespace edm {
namespace {

bool fits(const Attention& s, int isa) {
    return s.n >= 0 && s.heads > 0 && s.channels > 0 && s.pixels >= 0 && available(isa);
}

}  // namespace

int attention_fwd_cpu(const Attention& s, int isa, int threads) {
    if (s.dtype != kFloat32) return kBadType;
    if (!fits(s, isa)) return kBadArgument;
    if (s.n == 0 || s.pixels == 0) return kOk;
    const AttentionKernels& kernels = kernels_of(isa).attention;
    const int64_t blocks = (s.pixels + kQueries - 1) / kQueries, floats = ForwardScratch::floats(s);
    parallel_for(s.n * s.heads * blocks, 1, threads, [&](int64_t begin, int64_t end) {
        float* scratch = scratch_of(floats);
        for (int64_t item = begin; item < end; ++item) {
            const int64_t pair = item / blocks, block = item % blocks;
            if (item == begin || block == 0) kernels.pack_keys(s, pair, scratch);
            kernels.attend(s, pair, s.pixels * block / blocks, s.pixels * (block + 1) / blocks, scratch);
        }
    });
    return kOk;
}

int attention_bwd_cpu(const Attention& s, int isa, int threads) {
    if (s.dtype != kFloat32) return kBadType;
    if (!fits(s, isa)) return kBadArgument;
    if (s.n == 0 || s.pixels == 0) return kOk;
    if (!s.a_ptr || !s.stats_ptr || !s.da_ptr || !s.dqkv_ptr) return kBadArgument;
    const AttentionKernels& kernels = kernels_of(isa).attention;
    parallel_for(s.n * s.heads, 1, threads, [&](int64_t begin, int64_t end) {
        float* scratch = scratch_of(BackwardScratch::floats(s));
        for (int64_t pair = begin; pair < end; ++pair) kernels.differentiate(s, pair, scratch);
    });
    return kOk;
}

}  // namespace edm
