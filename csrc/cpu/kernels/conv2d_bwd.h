// The weight gradient of a convolution; conv2d_bwd.cpp cuts the work.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../conv2d.h"
#include "../_conv2d.h"
#include "../_conv2d_bwd.h"
#include "../_layout.h"
#include "../simd/vector.h"
#include "read_tile.h"
#include "winograd.h"

EDM_BEGIN

// A dy A^T of the tile at (y, x) of an image for the channels of one panel: planes `step` floats apart, kPanel wide,
// zeros where there are no channels
static void read_gradient(const Conv2dBwd& s, const Cut& cut, Place at, int64_t panel, float* m, int64_t step) {
    const int64_t rows = std::min<int64_t>(4, cut.oh - at.y), cols = std::min<int64_t>(4, cut.ow - at.x);
    const float* dy = static_cast<const float*>(s.dy_ptr) + ((at.n * cut.oh + at.y) * cut.ow + at.x) * s.out;
    for (int64_t c = 0; c < kPanel; c += kLanes) {
        const int64_t channel = panel * kPanel + c, left = s.out - channel;
        V half[6 * 4], t[4], u[6];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const bool there = i < rows && j < cols && left > 0;
                t[i] = there ? load_upto(dy + (i * cut.ow + j) * s.out + channel, left) : V{};
            }
            Winograd<4>::gradient(t, u);
#pragma GCC unroll 6
            for (int i = 0; i < 6; ++i) half[i * 4 + j] = u[i];
        }
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) {
            Winograd<4>::gradient(half + i * 4, u);
#pragma GCC unroll 6
            for (int j = 0; j < 6; ++j) store(m + (i * 6 + j) * step + c, u[j]);
        }
    }
}

// tiles [first, last) of the chunk that begins at tile `base`: their transforms, to v and m
static void transform_chunk(const Conv2dBwd& s, const Conv2d& image, const Cut& cut, int64_t base, int64_t first,
                            int64_t last, const GradientWorkspace& w) {
    for (int64_t t = first; t < last; ++t) {
        const Place at = cut.place(base + t);
        read_tile<Winograd<4>, Winograd<4>>(image, at.n, at.y, at.x, w.v + t * w.pitch, w.tiles * w.pitch);
        for (int64_t panel = 0; panel < w.panels; ++panel)
            read_gradient(s, cut, at, panel, w.m + (panel * w.tiles + t) * kPanel, w.panels * w.tiles * kPanel);
    }
}

// c (R, kPanel) = or += sum_k a[k, i] b[k, :], rows of a `pitch` apart
template <int R>
static __attribute__((noinline)) void multiply_columns_fixed(const float* a, int64_t pitch, const float* b,
                                                             int64_t depth, float* c, bool add) {
    for (int64_t k = 0, end; k < depth; k = end) {
        end = std::min(k + kChunk, depth);
        V acc[R][kWide];
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
            for (int j = 0; j < kWide; ++j) acc[i][j] = V{};
#pragma GCC unroll 2
        for (int64_t l = k; l < end; ++l, a += pitch, b += kPanel) {
            V w[kWide];
#pragma GCC unroll 2
            for (int j = 0; j < kWide; ++j) w[j] = load(b + j * kLanes);
#pragma GCC unroll 16
            for (int i = 0; i < R; ++i) {
                const V x = set1(a[i]);
#pragma GCC unroll 2
                for (int j = 0; j < kWide; ++j) acc[i][j] = fma(x, w[j], acc[i][j]);
            }
        }
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
            for (int j = 0; j < kWide; ++j) {
                float* to = c + i * kPanel + j * kLanes;
                store(to, add ? load(to) + acc[i][j] : acc[i][j]);
            }
        add = true;
    }
}

// one plane and panel of the transformed gradient: (in, kPanel) from `count` tiles
static void multiply_columns(const GradientWorkspace& w, int64_t in, int64_t plane, int64_t panel, int64_t count,
                             bool add) {
    const float* a = w.v + plane * w.tiles * w.pitch;
    const float* b = w.m + (plane * w.panels + panel) * w.tiles * kPanel;
    float* c = w.u + (plane * w.panels + panel) * in * kPanel;
    for (int column = 0; column < kPanel; column += kWide * kLanes) {
        int64_t i = 0;
        for (; i + kRows <= in; i += kRows)
            multiply_columns_fixed<kRows>(a + i, w.pitch, b + column, count, c + i * kPanel + column, add);
        for (; i + 4 <= in; i += 4)
            multiply_columns_fixed<4>(a + i, w.pitch, b + column, count, c + i * kPanel + column, add);
        for (; i < in; ++i) multiply_columns_fixed<1>(a + i, w.pitch, b + column, count, c + i * kPanel + column, add);
    }
}

// G^T u G of one panel and input channel, to dweight
static void write_weights(const Conv2dBwd& s, const GradientWorkspace& w, int64_t panel, int64_t i) {
    const float* u = w.u + (panel * s.in + i) * kPanel;
    const int64_t step = w.panels * s.in * kPanel;
    float plane[36 * kPanel], half[3 * 6 * kPanel], g[9 * kPanel];
    for (int p = 0; p < 36; ++p) std::copy(u + p * step, u + p * step + kPanel, plane + p * kPanel);
    for (int column = 0; column < 6; ++column)
        for (int k = 0; k < kPanel; ++k)
            Winograd<4>::weight_gradient(plane + column * kPanel + k, half + column * kPanel + k, 6 * kPanel);
    for (int row = 0; row < 3; ++row)
        for (int k = 0; k < kPanel; ++k)
            Winograd<4>::weight_gradient(half + row * 6 * kPanel + k, g + row * 3 * kPanel + k, kPanel);
    const int64_t columns = std::min<int64_t>(kPanel, s.out - panel * kPanel);
    for (int64_t k = 0; k < columns; ++k) {
        float* to = static_cast<float*>(s.dweight_ptr) + ((panel * kPanel + k) * s.in + i) * 9;
        for (int j = 0; j < 9; ++j) to[j] = g[j * kPanel + k];
    }
}

constexpr Conv2dBwdKernels conv2d_bwd_kernels{transform_chunk, multiply_columns, write_weights};
EDM_END
