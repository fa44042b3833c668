// Reading an image in the tiles of Winograd.
#pragma once

#include <cstdint>

#include "../../conv2d.h"
#include "../_pairs.h"
#include "../_scratch.h"
#include "../simd/vector.h"
#include "size.h"
#include "winograd.h"

EDM_BEGIN
// Where the P Q pixels of a tile lie whose first one is at (y0, x0) of image n; zeros outside of the image
template <int P, int Q>
static void find_pixels(const Conv2d& s, int64_t n, int64_t y0, int64_t x0, const float** pixels) {
    const float *image = static_cast<const float*>(s.x_ptr) + n * s.h * s.w * s.x_pitch, *zeros = zeros_of(s.in);
    for (int64_t y = y0; y < y0 + P; ++y)
        for (int64_t x = x0; x < x0 + Q; ++x) {
            const bool there = y >= 0 && y < s.h && x >= 0 && x < s.w;
            *pixels++ = there ? image + (y * s.w + x) * s.x_pitch : zeros;
        }
}

// The rows of B^T d B that belong to one of `Passes`, of the `left` channels from c on, to v: vectors `step` floats
// apart. Passes are over as many rows as the registers hold.
template <class Rows, class Columns, int Passes, int Pass, bool Scaled, bool Whole>
static EDM_INLINE void read_vectors(const float* const* pixels, int64_t c, int64_t left,
                                                               V scale, float* v, int64_t step) {
    constexpr int P = Rows::kPoints, Q = Columns::kPoints, rows = P / Passes;
    V d[P], u[P], line[Q], half[rows * Q];
#pragma GCC unroll 6
    for (int column = 0; column < Q; ++column) {
#pragma GCC unroll 6
        for (int i = 0; i < P; ++i) {
            const float* from = pixels[i * Q + column] + c;
            d[i] = Whole ? load(from) : load_part(from, int(left));
            if constexpr (Scaled) d[i] = d[i] * scale;
        }
        if constexpr (Passes > 1) Rows::template input<Pass>(d, u);
        else transform_input<Rows>(d, u);
#pragma GCC unroll 6
        for (int i = 0; i < rows; ++i) half[i * Q + column] = u[i];
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; ++i) {
        transform_input<Columns>(half + i * Q, line);
#pragma GCC unroll 10
        for (int j = 0; j < Q; ++j) {
            float* to = v + ((Pass * rows + i) * Q + j) * step + c;
            // planes are too many streams of stores for the processor to foresee
            if constexpr (Whole) prefetch_to_write(to + 2 * kLanes);
            Whole ? store(to, line[j]) : store_part(to, line[j], int(left));
        }
    }
}

// B^T d B of the tile whose outputs begin at (y0, x0) of image n, all channels, to v: P Q rows, `step` floats apart.
// Scaled: of its channels times `channels`, the tile then scaled to a size of about 1; returns the factor that takes
// the latter back.
template <class Rows, class Columns, bool Scaled = false>
static float read_tile(const Conv2d& s, int64_t n, int64_t y0, int64_t x0, float* v, int64_t step,
                       const float* channels = nullptr) {
    constexpr int P = Rows::kPoints, Q = Columns::kPoints, passes = Q > 6 ? 1 : Rows::kPasses;
    const float* pixels[P * Q];
    find_pixels<P, Q>(s, n, y0 - s.padding, x0 - s.padding, pixels);
    const Scale scale(Scaled ? size_of(pixels, P * Q, s.in, channels) : 1);
    const auto scales_at = [&](int64_t c, int64_t left) {
        if constexpr (Scaled) return set1(scale.to) * load_upto(channels + c, left);
        else return V{};
    };
    int64_t c = 0;
    for (const int64_t in = s.in; c + kLanes <= in; c += kLanes) {
        const V scales = scales_at(c, kLanes);
        read_vectors<Rows, Columns, passes, 0, Scaled, true>(pixels, c, kLanes, scales, v, step);
        if constexpr (passes > 1)
            read_vectors<Rows, Columns, passes, 1, Scaled, true>(pixels, c, kLanes, scales, v, step);
    }
    if (c < s.in) {
        const V scales = scales_at(c, s.in - c);
        read_vectors<Rows, Columns, passes, 0, Scaled, false>(pixels, c, s.in - c, scales, v, step);
        if constexpr (passes > 1)
            read_vectors<Rows, Columns, passes, 1, Scaled, false>(pixels, c, s.in - c, scales, v, step);
    }
    return scale.back;
}
EDM_END
