// Cuts attention into (image, head) times blocks of queries; a block goes over the keys in steps, with a running
// maximum and sum (Milakov & Gimelshein 2018; Dao et al. 2022), so that no matrix of pixels x pixels exists. How the work
// is cut depends on the sizes of one image alone: neither threads nor the batch change a bit.
#include "../attention.h"

#include <algorithm>
#include <cmath>

#include "_exp.h"
#include "_pairs.h"
#include "_scratch.h"

namespace edm {
namespace {

constexpr int64_t kQueries = 128, kKeys = 256, kDepth = 128;  // multiples of the width of a packed panel
constexpr int64_t kWeightPitch = row_pitch(kKeys), kTurnedPitch = row_pitch(kQueries);

constexpr int64_t padded(int64_t n) { return (n + 31) / 32 * 32; }

float scale_of(const Attention& s) { return float(1 / std::sqrt(double(s.channels))); }

// What a thread packs for one image and head, then for one block of queries. k has a panel for every 32 keys, the sums
// over channels run down it; v has one for every 32 channels.
struct Forward {
    int64_t pitch;
    float *k, *v, *q, *a, *w;
    Forward(const Attention& s, float* scratch)
        : pitch(row_pitch(padded(s.channels))), k(scratch), v(k + padded(s.pixels) * s.channels),
          q(v + s.pixels * padded(s.channels)), a(q + kQueries * pitch), w(a + kQueries * pitch) {}
    static int64_t floats(const Attention& s) {
        return padded(s.pixels) * s.channels + s.pixels * padded(s.channels) +
               kQueries * (2 * row_pitch(padded(s.channels)) + kWeightPitch);
    }
};

// Likewise. Rows, panels for sums over channels (k, v) and panels for sums over pixels; _turned: a row for each key.
struct Backward {
    int64_t pitch;
    float *k, *v, *k_panels, *dk, *dv, *q, *da, *dq, *q_panels, *da_panels, *w, *dw, *w_turned, *dw_turned;
    Backward(const Attention& s, float* scratch)
        : pitch(row_pitch(padded(s.channels))), k(scratch), v(k + padded(s.pixels) * s.channels),
          k_panels(v + padded(s.pixels) * s.channels), dk(k_panels + s.pixels * padded(s.channels)),
          dv(dk + s.pixels * pitch), q(dv + s.pixels * pitch), da(q + kQueries * pitch), dq(da + kQueries * pitch),
          q_panels(dq + kQueries * pitch), da_panels(q_panels + kQueries * pitch), w(da_panels + kQueries * pitch),
          dw(w + kQueries * kWeightPitch), w_turned(dw + kQueries * kWeightPitch),
          dw_turned(w_turned + kKeys * kTurnedPitch) {}
    static int64_t floats(const Attention& s) {
        const int64_t pitch = row_pitch(padded(s.channels));
        return 2 * padded(s.pixels) * s.channels + s.pixels * (padded(s.channels) + 2 * pitch) +
               kQueries * (5 * pitch + 2 * kWeightPitch) + 2 * kKeys * kTurnedPitch;
    }
};

}  // namespace
}  // namespace edm
#define EDM_BODY "_attention.inc"
#include "_foreach_isa.h"

namespace edm {
namespace {

bool fits(const Attention& s, int isa) {
    return s.n >= 0 && s.heads > 0 && s.channels > 0 && s.pixels >= 0 && isa <= best_isa();
}

}  // namespace

int attention_fwd_cpu(const Attention& s, int isa, int threads) {
    if (s.dtype != kFloat32) return kBadType;
    if (!fits(s, isa)) return kBadArgument;
    if (s.n == 0 || s.pixels == 0) return kOk;
    const int64_t blocks = (s.pixels + kQueries - 1) / kQueries, floats = Forward::floats(s);
    parallel_for(s.n * s.heads * blocks, 1, threads, [&](int64_t begin, int64_t end) {
        float* scratch = scratch_of(floats);
        for (int64_t item = begin; item < end; ++item) {
            const int64_t pair = item / blocks, block = item % blocks;
            if (item == begin || block == 0) EDM_DISPATCH(isa, pack_keys(s, pair, scratch));
            EDM_DISPATCH(isa, attend(s, pair, s.pixels * block / blocks, s.pixels * (block + 1) / blocks, scratch));
        }
    });
    return kOk;
}

int attention_bwd_cpu(const Attention& s, int isa, int threads) {
    if (s.dtype != kFloat32) return kBadType;
    if (!fits(s, isa)) return kBadArgument;
    if (s.n == 0 || s.pixels == 0) return kOk;
    if (!s.a_ptr || !s.stats_ptr || !s.da_ptr || !s.dqkv_ptr) return kBadArgument;
    parallel_for(s.n * s.heads, 1, threads, [&](int64_t begin, int64_t end) {
        float* scratch = scratch_of(Backward::floats(s));
        for (int64_t pair = begin; pair < end; ++pair) EDM_DISPATCH(isa, differentiate(s, pair, scratch));
    });
    return kOk;
}

}  // namespace edm
