// What the driver of the weight gradient and its kernels share.
#pragma once

#include <algorithm>

#include "../conv2d.h"
#include "_conv2d.h"
#include "_layout.h"

namespace edm {

constexpr int64_t kChunkFloats = 3 * 1024 * 1024;  // of transformed images at a time
constexpr int64_t kWritten = 8;                    // input channels whose weights are written at a time
constexpr int64_t kSlice = 2 * kChunk;             // tiles of one panel at a time: sums are cut there anyway

// Transformed images v (36, tiles, pitch), gradients m (36, panels, slice, kPanel) and weights u (36, panels, in,
// kPanel). Where all tiles are one chunk, `alone`, a panel at a time passes through u, and a slice of its tiles through
// m: 1.2 MB at most, which stay in the second-level cache of a thread or near it.
struct GradientSizes {
    int64_t pitch, panels, tiles, slice;  // floats of a row of v; panels at a time; tiles of a chunk, and of m
    bool alone;

    GradientSizes(int64_t total, int64_t in, int64_t out) : pitch(row_pitch(in)), panels(edm::panels(out)) {
        tiles = std::max<int64_t>(1, std::min(total, kChunkFloats / (36 * (pitch + panels * kPanel))));
        alone = 36 * pitch * total <= kChunkFloats;
        if (alone) tiles = total, panels = 1;
        slice = alone ? std::min(tiles, kSlice) : tiles;
    }
    int64_t v_floats() const { return 36 * tiles * pitch; }
    int64_t m_step() const { return panels * slice * kPanel; }  // from plane to plane
    int64_t u_step(int64_t in) const { return panels * in * kPanel; }
    int64_t panel_floats(int64_t in) const { return 36 * (m_step() + u_step(in)); }
};

// of one instruction set
struct Conv2dBwdKernels {
    // of the tiles [first, last) of the chunk that begins with tile `base`: images, and one panel of the gradient
    void (*transform_images)(const Conv2d& image, const Cut& cut, int64_t base, int64_t first, int64_t last, float* v,
                             const GradientSizes& sizes);
    void (*transform_gradient)(const Conv2dBwd& s, const Cut& cut, int64_t base, int64_t first, int64_t last,
                               int64_t panel, float* m, int64_t step);
    // c (count, kPanel) = or += a (depth, count), rows `pitch` apart, times b (depth, kPanel), sums over `depth` tiles
    void (*multiply_columns)(const float* a, int64_t pitch, const float* b, int64_t depth, float* c, int64_t count,
                             bool add);
    // input channels [first, last) of one panel u, whose planes lie `step` apart
    void (*write_weights)(const Conv2dBwd& s, const float* u, int64_t step, int64_t panel, int64_t first, int64_t last);
};

}  // namespace edm
