// The convolution with a packed weight. conv2d.cpp cuts the work.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../../conv2d.h"
#include "../_conv2d.h"
#include "../_layout.h"
#include "../_scratch.h"
#include "../_weights.h"
#include "../simd/vector.h"
#include "conv2d_output.h"
#include "conv2d_unpacked.h"
#include "conv2d_weights.h"
#include "matmul.h"
#include "matmul_int16.h"
#include "pairs.h"
#include "read_tile.h"
#include "size.h"
#include "winograd.h"

EDM_BEGIN
constexpr int64_t kManyChannels = 256;

// m (count, kPanel) of one plane: rows v, `pitch` floats apart, times a packed panel
static void multiply_plane(const float* v, int64_t pitch, int64_t count, int64_t depth, const float* u, float* m) {
    const EvenRows<float> rows{v, pitch};
    const Product product{depth, u, m, kPanel};
    // the weights of a layer with so many channels do not stay in the caches; the first rows fetch them
    depth >= kManyChannels ? multiply_rows<Ahead::kPanel>(count, rows, product) : multiply_rows(count, rows, product);
}

static void multiply_plane_int16(const int16_t* v, const float* factors, int64_t count, int64_t depth, const float* u,
                                 float* m) {
    for (int64_t i = 0; i < count; i += kRows)
        multiply_int16(int(std::min<int64_t>(kRows, count - i)), v + i * int16_pitch(depth), factors + i, depth, u,
                       m + i * kPanel);
}

// tiles [first, last), panels [panel, last_panel)
template <class Rows, class Columns>
static void winograd(const Conv2d& s, const Cut& cut, int64_t first, int64_t last, int64_t panel, int64_t last_panel,
                     float* scratch, Phase phase) {
    constexpr int planes = Rows::kPoints * Columns::kPoints;
    const bool small = kAlgorithms[s.algorithm].int16();
    const int64_t first_panel = phase.index() * panels(s.out);
    const int64_t depth = s.in, pitch = row_pitch(depth), count = last - first, m_step = spread(count * kPanel);
    const int64_t panel_floats = small ? int16_panel(depth) : depth * kPanel;
    // one tile at a time on its way to integers, otherwise all of the block's
    const int64_t tile = small ? 0 : spread(planes * pitch), q_step = count * int16_pitch(depth);
    float *m = scratch, *v = m + planes * m_step, *factors = v + (small ? planes * pitch : count * tile);
    int16_t* q = reinterpret_cast<int16_t*>(factors + planes * count);
    Place places[kMostTiles];
    for (int64_t t = 0; t < count; ++t) {
        const Place at = places[t] = cut.place(first + t);
        if (!small) {
            read_tile<Rows, Columns>(s, at.n, at.y + phase.y, at.x + phase.x, v + t * tile, pitch);
            continue;
        }
        read_tile<Rows, Columns>(s, at.n, at.y + phase.y, at.x + phase.x, v, pitch);
        for (int plane = 0; plane < planes; ++plane)
            factors[plane * count + t] =
                quantize(v + plane * pitch, depth, q + plane * q_step + t * int16_pitch(depth));
    }
    const Tail tail(s);
    for (; panel < last_panel; ++panel) {
        const float* u = static_cast<const float*>(s.weight_ptr) + (first_panel + panel) * planes * panel_floats;
        for (int plane = 0; plane < planes; ++plane, u += panel_floats) {
            float* const to = m + plane * m_step;
            if (small) multiply_plane_int16(q + plane * q_step, factors + plane * count, count, depth, u, to);
            else multiply_plane(v + plane * pitch, tile, count, depth, u, to);
        }
        for (int64_t t = 0; t < count; ++t)
            write_tile<Rows, Columns>(s, tail, cut, phase, places[t], panel * kPanel, m + t * kPanel, m_step,
                                      t + 1 < count);
    }
}

// a 1x1 convolution without padding, the pixels [first, last) of all images in a row
static void pointwise_int16(const Conv2d& s, const Cut& cut, int64_t first, int64_t last, int64_t panel,
                            int64_t last_panel, float* scratch) {
    const int64_t count = last - first, pitch = int16_pitch(s.in);
    float *c = scratch, *factors = c + count * kPanel;
    int16_t* q = reinterpret_cast<int16_t*>(factors + count);
    const float* x = static_cast<const float*>(s.x_ptr);
    const Tail tail(s);
    int64_t images[kMostPixels];
    for (int64_t t = 0; t < count; ++t) {
        factors[t] = quantize(x + (first + t) * s.x_pitch, s.in, q + t * pitch);
        images[t] = cut.place(first + t).n;
    }
    for (; panel < last_panel; ++panel) {
        const float* u = static_cast<const float*>(s.weight_ptr) + panel * int16_panel(s.in);
        multiply_plane_int16(q, factors, count, s.in, u, c);
        write_rows(s, tail, images, first, int(count), panel, c);
    }
}

// the same with products in pairs: each pixel scaled by its own factor
static void pointwise_paired(const Conv2d& s, const Cut& cut, int64_t first, int64_t last, int64_t panel,
                             int64_t last_panel, float* scratch) {
    const int64_t depth = s.in, count = last - first, pitch = tile_pitch(kAlgorithms[s.algorithm], depth);
    const int64_t behind = corrections_at(depth);
    float *c = scratch, *factors = c + kMostPixels * kPanel, *rows = factors + count;
    const Tail tail(s);
    int64_t images[kMostPixels];
    LaneSums corrections;
    const float* const weight = static_cast<const float*>(s.weight_ptr);
    const Balance balance(weight + panels(s.out) * paired_panel(depth), depth, s.out);
    for (int64_t t = 0; t < count; ++t) {
        const float* const x = static_cast<const float*>(s.x_ptr) + (first + t) * s.x_pitch;
        const Scale scale(size_of(&x, 1, depth, balance.channels));
        float* const row = rows + t * pitch;
        for (int64_t k = 0; k < depth; k += kLanes)
            store(row + k, load_upto(x + k, depth - k) * (load_upto(balance.channels + k, depth - k) * set1(scale.to)));
        correct_row(row, depth, kPairedChunk, row + behind, corrections);
        factors[t] = scale.back, images[t] = cut.place(first + t).n;
    }
    if (corrections.count) corrections.finish();
    for (; panel < last_panel; ++panel) {
        const float* u = weight + panel * paired_panel(depth);
        for (int64_t t = 0; t < count; t += kRows) {
            const int few = int(std::min<int64_t>(kRows, count - t));
            const EvenRows<float> of{rows + t * pitch, pitch};
            const Product product{depth, u, c, kPanel, false, kPairedChunk, nullptr, u + depth * kPanel, behind};
            expect_rows(tail, first + t, few, panel);
            if (t == 0 && depth >= kManyChannels) multiply_few<Ahead::kPanel, true>(few, of, product);
            else multiply_few<Ahead::kNothing, true>(few, of, product);
            write_rows(s, tail, images + t, first + t, few, panel, c, factors + t, balance.back + panel * kPanel);
        }
    }
}

// outputs [first, last) of all images in a row, panels [panel, last_panel), as one sum over kernel positions and
// channels
static void direct(const Conv2d& s, const Cut& cut, int64_t first, int64_t last, int64_t panel, int64_t last_panel,
                   float* c) {
    const int64_t taps = s.kernel * s.kernel, depth = s.in * taps, count = last - first;
    const float *x = static_cast<const float*>(s.x_ptr), *zeros = zeros_of(s.in);
    const bool pointwise = taps == 1 && s.padding == 0;
    const Tail tail(s);
    const float* rows[9][kMostPixels];
    int64_t images[kMostPixels];
    for (int64_t t = 0; t < count; ++t) {
        const Place at = cut.place(first + t);
        images[t] = at.n;
        for (int64_t i = 0; i < s.kernel; ++i)
            for (int64_t j = 0; j < s.kernel; ++j) {
                const int64_t row = at.y + i - s.padding, column = at.x + j - s.padding;
                const bool there = row >= 0 && row < s.h && column >= 0 && column < s.w;
                rows[i * s.kernel + j][t] = there ? x + ((at.n * s.h + row) * s.w + column) * s.x_pitch : zeros;
            }
    }
    // few, so that outputs, perhaps a power of two apart, stay in the first-level cache until they are written
    constexpr int64_t together = kPartsInTurn ? 4 * kRows : kRows;
    static_assert(together <= kMostPixels, "the room for their sums");
    const int64_t first_panel = panel;  // reads the pixels from far
    for (; panel < last_panel; ++panel) {
        const float* u = static_cast<const float*>(s.weight_ptr) + panel * depth * kPanel;
        for (int64_t t = 0; t < count; t += together) {
            const int few = int(std::min(together, count - t));
            expect_rows(tail, first + t, few, panel);
            if (pointwise) {
                const EvenRows<float> pixels{rows[0][t], s.x_pitch};
                const Product product{depth, u, c, kPanel, false, kChunk, pixels.from(few, 0).first};
                if (kPartsInTurn && panel == first_panel) multiply_rows<Ahead::kRows>(few, pixels, product);
                else multiply_rows(few, pixels, product);
            }
            for (int64_t j = 0; j < taps && !pointwise; ++j)
                multiply_rows(few, ListedRows<float>{rows[j] + t}, {s.in, u + j * s.in * kPanel, c, kPanel, j > 0});
            write_rows(s, tail, images + t, first + t, few, panel, c);
        }
    }
}

static void convolve(const Conv2d& s, const Cut& cut, int64_t first, int64_t last, int64_t panel, int64_t last_panel,
                     float* scratch) {
    const Algorithm& algorithm = kAlgorithms[s.algorithm];
    if (!algorithm.transforms()) {
        const auto pixels = algorithm.int16() ? pointwise_int16 : algorithm.paired() ? pointwise_paired : direct;
        return pixels(s, cut, first, last, panel, last_panel, scratch);
    }
    with_transforms(algorithm, [&](auto rows, auto columns) {
        for (int p = 0; p < algorithm.phases(); ++p)
            winograd<decltype(rows), decltype(columns)>(s, cut, first, last, panel, last_panel, scratch,
                                                        phase_of(algorithm, p));
    });
}

constexpr Conv2dKernels conv2d_kernels{convolve, read_tiles, multiply_tiles<false>, multiply_tiles<true>, pack_panel};
EDM_END
