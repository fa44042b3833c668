// The memory in which attention packs its operands.
#pragma once

#include <cmath>

#include "../attention.h"
#include "_layout.h"

namespace edm {

constexpr int64_t kQueries = 128, kKeys = 256, kPartTerms = 128;  // of one part of a sum; multiples of kPanel
constexpr int64_t kWeightPitch = row_pitch(kKeys), kTurnedPitch = row_pitch(kQueries);

inline bool fits(const Attention& s) { return s.n >= 0 && s.heads > 0 && s.channels > 0 && s.pixels >= 0; }

inline float scale_of(const Attention& s) { return float(1 / std::sqrt(double(s.channels))); }

// What a thread packs for one image and head, then for one block of queries. k has a panel for every 32 keys, the sums
// over channels run down it; v has one for every 32 channels.
struct ForwardScratch {
    int64_t pitch;
    float *k, *v, *q, *a, *w;
    ForwardScratch(const Attention& s, float* scratch)
        : pitch(row_pitch(padded(s.channels))), k(scratch), v(k + padded(s.pixels) * s.channels),
          q(v + s.pixels * padded(s.channels)), a(q + kQueries * pitch), w(a + kQueries * pitch) {}
    static int64_t floats(const Attention& s) {
        return padded(s.pixels) * s.channels + s.pixels * padded(s.channels) +
               kQueries * (2 * row_pitch(padded(s.channels)) + kWeightPitch);
    }
};

// Likewise. Rows, panels for sums over channels (k, v) and panels for sums over pixels; _turned: a row for each key.
struct BackwardScratch {
    int64_t pitch;
    float *k, *v, *k_panels, *dk, *dv, *q, *da, *dq, *q_panels, *da_panels, *w, *dw, *w_turned, *dw_turned;
    BackwardScratch(const Attention& s, float* scratch)
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

}  // namespace edm
