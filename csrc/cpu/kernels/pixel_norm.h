// pixel_norm, channels last: n = x / (eps + RMS of a group of channels of x's pixel); m = n gain; y = m sigmoid(m);
// each part may be left out. Its gradient, with s = eps + RMS, g = dy silu'(m) gain and dot = the group's sum of g x:
//     dx = (g - x dot / (s channels RMS)) / s,    dgain = sum over pixels of dy silu'(m) n
// Sums run in fixed lanes and blocks of pixels, uncontracted: one result on every instruction set and thread count; of
// the SiLU forward there are several (normalise.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../../arguments.h"
#include "../simd/vector.h"
#include "exp.h"
#include "group_norm_silu_bwd.h"
#include "normalise.h"

namespace edm {

struct PixelNorm {
    int dtype;                          // float32
    const void *x_ptr, *gain_ptr;       // (n, space, c); (n or 1, c), or null
    void* y_ptr;                        // (n, space, c): output of forward, or null if affine_ptr is not
    void* affine_ptr;                   // (n, 3, c), without norm: what group_norm_silu_fwd_cpu leaves for convolutions
    const void* dy_ptr;                 // (n, space, c): input of backward
    void *dx_ptr, *dgain_ptr;           // outputs of backward: (n, space, c); as gain, or null
    int64_t n, c, space, gain_rows;     // gain_rows: n, 1, or 0 for none
    int64_t groups, interleaved;        // a norm is that of every `interleaved`-th (1 or 3) of c / groups channels
    double eps;
    bool norm, silu;
    int64_t x_pitch, y_pitch;           // forward: elements from pixel to pixel
};

template <>
inline std::vector<Field> fields<PixelNorm>() {
    using S = PixelNorm;
    return {MUST(kAny, dtype), MUST(kAny, x_ptr), MAY(kAny, gain_ptr), MAY(kForward, y_ptr), MAY(kForward, affine_ptr),
            MUST(kBackward, dy_ptr), MUST(kBackward, dx_ptr), MAY(kBackward, dgain_ptr), MUST(kAny, n), MUST(kAny, c),
            MUST(kAny, space), MAY(kAny, gain_rows), MUST(kAny, groups), MUST(kAny, interleaved), MUST(kAny, eps),
            MUST(kAny, norm), MUST(kAny, silu), MUST(kForward, x_pitch), MAY(kForward, y_pitch)};
}

constexpr int64_t kPixelsAtOnce = 64;  // whose share of dgain is summed before it joins the others

inline bool fits(const PixelNorm& s) {
    return s.n > 0 && s.c > 0 && s.space > 0 && s.groups > 0 && (s.interleaved == 1 || s.interleaved == 3) &&
           s.c % (s.groups * s.interleaved) == 0 &&
           (s.gain_ptr ? s.gain_rows == 1 || s.gain_rows == s.n : s.gain_rows == 0);
}

inline const float* gain_of(const PixelNorm& s, int64_t n) {
    return s.gain_ptr ? static_cast<const float*>(s.gain_ptr) + (s.gain_rows > 1 ? n * s.c : 0) : nullptr;
}

}  // namespace edm

EDM_BEGIN
// to[k] = sum over every I-th of a b, from the k-th on
template <int I>
EDM_INLINE void dots(float* to, const float* a, const float* b, int64_t width) {
    constexpr int L = 32 * I;
    float lanes[L] = {};
    int64_t c = 0;
    for (; c + L <= width; c += L)
        for (int l = 0; l < L; ++l) lanes[l] += a[c + l] * b[c + l];
    for (int l = 0; c + l < width; ++l) lanes[l] += a[c + l] * b[c + l];
    for (int k = 0; k < I; ++k) {
        double sum = 0;
        for (int l = k; l < L; l += I) sum += double(lanes[l]);
        to[k] = float(sum);
    }
}

// y = x factor, one factor for every I-th
template <int I>
EDM_INLINE void times(float* EDM_RESTRICT y, const float* x, const float* factors, int64_t width) {
    constexpr int L = 16 * I;
    float lanes[L];
    for (int l = 0; l < L; ++l) lanes[l] = factors[l % I];
    int64_t c = 0;
    for (; c + L <= width; c += L)
        for (int l = 0; l < L; ++l) y[c + l] = x[c + l] * lanes[l];
    for (int l = 0; c + l < width; ++l) y[c + l] = x[c + l] * lanes[l];
}

// y = x / (eps + RMS) of all channels of a pixel
template <int I>
static void normalise_groups_of(const PixelNorm& s, float* y, const float* x) {
    const int64_t width = s.c / s.groups;
    for (int64_t c = 0; c < s.c; c += width) {
        float factors[I];
        dots<I>(factors, x + c, x + c, width);
        for (float& f : factors) f = 1 / (float(s.eps) + std::sqrt(f / float(width / I)));
        times<I>(y + c, x + c, factors, width);
    }
}

// y = x gain, and its SiLU
template <int N>
EDM_INLINE void scaled(float* y, const float* x, const float* gain, bool silu, int64_t left = kLanes) {
    V m[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
        const int64_t at = i * kLanes, n = i + 1 < N ? kLanes : left;
        m[i] = load_upto(x + at, n);
        if (gain) m[i] = m[i] * load_upto(gain + at, n);
    }
    if (silu) silu_of<N>(m);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) store_upto(y + i * kLanes, m[i], i + 1 < N ? kLanes : left);
}

static void scale_pixel(float* y, const float* x, const float* gain, int64_t channels, bool silu) {
    const auto at = [&](int64_t c) { return gain ? gain + c : nullptr; };
    int64_t c = 0;
    for (; c + 4 * kLanes <= channels; c += 4 * kLanes) scaled<4>(y + c, x + c, at(c), silu);
    for (; c < channels; c += kLanes) scaled<1>(y + c, x + c, at(c), silu, channels - c);
}

static int pixel_norm_fwd(const PixelNorm& s, int threads) {
    if (s.dtype != kFloat32) return kBadType;
    if (!fits(s) || s.x_pitch < s.c || (s.affine_ptr ? s.norm : !s.y_ptr || s.y_pitch < s.c)) return kBadArgument;
    if (s.affine_ptr) {
        float* to = static_cast<float*>(s.affine_ptr);
        for (int64_t n = 0; n < s.n; ++n, to += 3 * s.c) {
            std::fill(to, to + 3 * s.c, 0.0f);  // mean, factor, shift
            if (s.gain_ptr) std::copy(gain_of(s, n), gain_of(s, n) + s.c, to + s.c);
            else std::fill(to + s.c, to + 2 * s.c, 1.0f);
        }
        return kOk;
    }
    parallel_for(s.n * s.space, std::max<int64_t>(1, 8192 / s.c), threads, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
            const float *x = static_cast<const float*>(s.x_ptr) + p * s.x_pitch, *gain = gain_of(s, p / s.space);
            float* y = static_cast<float*>(s.y_ptr) + p * s.y_pitch;
            if (s.norm) s.interleaved == 1 ? normalise_groups_of<1>(s, y, x) : normalise_groups_of<3>(s, y, x);
            if (!s.norm || gain || s.silu) scale_pixel(y, s.norm ? y : x, gain, s.c, s.silu);
        }
    });
    return kOk;
}

// dx from g and x, channels of one pixel
template <int I>
static void differentiate_norm(const PixelNorm& s, float* dx, const float* x, const float* g) {
    const int64_t width = s.c / s.groups;
    for (int64_t c = 0; c < s.c; c += width) {
        float squares[I], dot[I], lanes[16 * I], other[16 * I];
        dots<I>(squares, x + c, x + c, width);
        dots<I>(dot, x + c, g + c, width);
        for (int l = 0; l < 16 * I; ++l) {
            const float rms = std::sqrt(squares[l % I] / float(width / I)), size = float(s.eps) + rms;
            lanes[l] = 1 / size;
            other[l] = rms > 0 ? dot[l % I] / size / (float(width / I) * rms) : 0.0f;  // size^2 RMS may be too large
        }
        for (int64_t i = 0; i < width; i += 16 * I)
            for (int64_t l = 0; l < std::min<int64_t>(16 * I, width - i); ++l)
                dx[c + i + l] = (g[c + i + l] - x[c + i + l] * other[l]) * lanes[l];
    }
}

// pixels [first, last) of an image; adds to dgain
static void differentiate_pixels(const PixelNorm& s, int64_t image, int64_t first, int64_t last, float* dgain,
                                 float* scratch) {
    const float* gain = gain_of(s, image);
    float *n = scratch, *g = n + s.c;
    for (int64_t p = image * s.space + first; p < image * s.space + last; ++p) {
        const float* x = static_cast<const float*>(s.x_ptr) + p * s.c;
        const float* dy = static_cast<const float*>(s.dy_ptr) + p * s.c;
        float* dx = static_cast<float*>(s.dx_ptr) + p * s.c;
        if (!s.norm) std::copy(x, x + s.c, n);
        else s.interleaved == 1 ? normalise_groups_of<1>(s, n, x) : normalise_groups_of<3>(s, n, x);
        if (s.silu) {
            for (int64_t c = 0; c < s.c; ++c) g[c] = gain ? n[c] * gain[c] : n[c];
            for (int64_t c = 0; c < s.c; c += kStage) times_slope(g + c, dy + c, std::min(kStage, s.c - c));
        } else {
            std::copy(dy, dy + s.c, g);
        }
        if (gain)
            for (int64_t c = 0; c < s.c; ++c) dgain[c] += g[c] * n[c], g[c] *= gain[c];
        if (!s.norm) std::copy(g, g + s.c, dx);
        else s.interleaved == 1 ? differentiate_norm<1>(s, dx, x, g) : differentiate_norm<3>(s, dx, x, g);
    }
}

static int pixel_norm_bwd(const PixelNorm& s, int threads) {
    if (s.dtype != kFloat32) return kBadType;
    if (!fits(s) || !s.dgain_ptr != !s.gain_ptr) return kBadArgument;
    const int64_t blocks = (s.space + kPixelsAtOnce - 1) / kPixelsAtOnce;
    std::vector<float> sums(s.gain_ptr ? s.n * blocks * s.c : 0);
    parallel_for(s.n * blocks, 1, threads, [&](int64_t begin, int64_t end) {
        std::vector<float> scratch(2 * s.c);
        for (int64_t item = begin; item < end; ++item) {
            const int64_t first = item % blocks * kPixelsAtOnce, last = std::min(s.space, first + kPixelsAtOnce);
            differentiate_pixels(s, item / blocks, first, last, sums.data() + item * s.c * (s.gain_ptr != nullptr),
                                 scratch.data());
        }
    });
    if (!s.gain_ptr) return kOk;
    float* dgain = static_cast<float*>(s.dgain_ptr);
    const int64_t each = s.n / s.gain_rows * blocks;  // blocks that share a row
    std::vector<double> total(s.c);
    for (int64_t row = 0; row < s.gain_rows; ++row) {
        std::fill(total.begin(), total.end(), 0.0);
        for (int64_t block = row * each; block < (row + 1) * each; ++block)
            for (int64_t c = 0; c < s.c; ++c) total[c] += double(sums[block * s.c + c]);
        for (int64_t c = 0; c < s.c; ++c) dgain[row * s.c + c] = float(total[c]);
    }
    return kOk;
}
EDM_END
