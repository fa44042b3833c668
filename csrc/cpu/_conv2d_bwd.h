// What the driver of the weight gradient and its kernels share.
#pragma once

#include <algorithm>

#include "../conv2d.h"
#include "_conv2d.h"
#include "_layout.h"

namespace edm {

constexpr int64_t kChunkFloats = 3 * 1024 * 1024;  // of transformed images at a time

struct GradientWorkspace {
    int64_t pitch, panels, tiles;  // floats of a row of v; panels of dy's channels; tiles of a chunk
    // (36, tiles, pitch), (36, panels, tiles, kPanel), (36, panels, in, kPanel)
    float *v = nullptr, *m = nullptr, *u = nullptr;
    int64_t floats;

    GradientWorkspace(int64_t total, int64_t in, int64_t out, float* memory)
        : pitch(row_pitch(in)), panels(edm::panels(out)) {
        const int64_t each = 36 * (pitch + panels * kPanel);
        tiles = std::max<int64_t>(1, std::min(total, kChunkFloats / each));
        if (memory) v = memory, m = v + 36 * tiles * pitch, u = m + 36 * tiles * panels * kPanel;
        floats = each * tiles + 36 * panels * in * kPanel;
    }
};

// of one instruction set
struct Conv2dBwdKernels {
    // tiles [first, last) of the chunk that begins with tile `base`
    void (*transform_chunk)(const Conv2dBwd& s, const Conv2d& image, const Cut& cut, int64_t base, int64_t first,
                            int64_t last, const GradientWorkspace& w);
    void (*multiply_columns)(const GradientWorkspace& w, int64_t in, int64_t plane, int64_t panel, int64_t count,
                             bool add);
    void (*write_weights)(const Conv2dBwd& s, const GradientWorkspace& w, int64_t panel, int64_t i);
};

}  // namespace edm
