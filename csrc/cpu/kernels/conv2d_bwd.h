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

static void transform_images(const Conv2d& image, const Cut& cut, int64_t base, int64_t first, int64_t last, float* v,
                             const GradientSizes& sizes) {
    for (int64_t t = first; t < last; ++t) {
        const Place at = cut.place(base + t);
        read_tile<Winograd<4>, Winograd<4>>(image, at.n, at.y, at.x, v + t * sizes.pitch, sizes.tiles * sizes.pitch);
    }
}

static void transform_gradient(const Conv2dBwd& s, const Cut& cut, int64_t base, int64_t first, int64_t last,
                               int64_t panel, float* m, int64_t step) {
    for (int64_t t = first; t < last; ++t) read_gradient(s, cut, cut.place(base + t), panel, m + t * kPanel, step);
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

static void multiply_columns(const float* a, int64_t pitch, const float* b, int64_t depth, float* c, int64_t count,
                             bool add) {
    for (int column = 0; column < kPanel; column += kWide * kLanes, b += kWide * kLanes, c += kWide * kLanes) {
        int64_t i = 0;
        for (; i + kRows <= count; i += kRows)
            multiply_columns_fixed<kRows>(a + i, pitch, b, depth, c + i * kPanel, add);
        for (; i + 4 <= count; i += 4) multiply_columns_fixed<4>(a + i, pitch, b, depth, c + i * kPanel, add);
        for (; i < count; ++i) multiply_columns_fixed<1>(a + i, pitch, b, depth, c + i * kPanel, add);
    }
}

// G^T u G of one panel and the input channels [first, last), to dweight, whose rows, one for each output channel, lie
// far apart: written kWritten channels at a time
static void write_weights(const Conv2dBwd& s, const float* u, int64_t step, int64_t panel, int64_t first,
                          int64_t last) {
    const int64_t columns = std::min<int64_t>(kPanel, s.out - panel * kPanel);
    float half[3 * 6 * kPanel], g[9 * kPanel], rows[kPanel * kWritten * 9];
    for (int64_t count; first < last; first += count) {
        count = std::min(kWritten, last - first);
        for (int64_t i = 0; i < count; ++i) {
            const float* plane = u + (first + i) * kPanel;
            for (int column = 0; column < 6; ++column, plane += step)
                for (int k = 0; k < kPanel; ++k)
                    Winograd<4>::weight_gradient(plane + k, half + column * kPanel + k, 6 * step, 6 * kPanel);
            for (int row = 0; row < 3; ++row)
                for (int k = 0; k < kPanel; ++k)
                    Winograd<4>::weight_gradient(half + row * 6 * kPanel + k, g + row * 3 * kPanel + k, kPanel, kPanel);
            for (int k = 0; k < kPanel; ++k)
                for (int j = 0; j < 9; ++j) rows[(k * kWritten + i) * 9 + j] = g[j * kPanel + k];
        }
        for (int64_t k = 0; k < columns; ++k)
            std::copy_n(rows + k * kWritten * 9, count * 9,
                        static_cast<float*>(s.dweight_ptr) + ((panel * kPanel + k) * s.in + first) * 9);
    }
}

constexpr Conv2dBwdKernels conv2d_bwd_kernels{transform_images, transform_gradient, multiply_columns,
                                              write_weights};
EDM_END
