// Squares of kLanes pixels x kLanes channels between a tensor of any strides and packed rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../_layout.h"
#include "../simd/vector.h"

EDM_BEGIN
// up to n elements, `step` apart; 0 beyond
static inline V load_steps(const float* p, int64_t step, int64_t n) {
    if (n <= 0) return V{};
    if (step == 1) return load_upto(p, n);
    float lanes[kLanes] = {};
    for (int64_t i = 0; i < std::min<int64_t>(n, kLanes); ++i) lanes[i] = p[i * step];
    return load(lanes);
}

static inline void store_steps(float* p, int64_t step, V v, int64_t n) {
    if (step == 1) return store_upto(p, v, n);
    float lanes[kLanes];
    store(lanes, v);
    for (int64_t i = 0; i < std::min<int64_t>(n, kLanes); ++i) p[i * step] = lanes[i];
}

// one matrix of a tensor: `channels` x pixels up to `end`, to be read or written
struct View {
    float* p;
    int64_t channel, pixel;  // strides
    int64_t channels, end;
};

// The tiles that cover pixels [first, last) and `channels`, in the order in which m lies in memory.
struct Tiles {
    int64_t first, pixels, channels;
    bool pixels_apart;
    Tiles(const View& m, int64_t first, int64_t last, int64_t channels)
        : first(first), pixels((last - first + kLanes - 1) / kLanes), channels((channels + kLanes - 1) / kLanes),
          pixels_apart(m.pixel != 1) {}
    int64_t count() const { return pixels * channels; }
    int64_t pixel(int64_t i) const { return first + (pixels_apart ? i / channels : i % pixels) * kLanes; }
    int64_t channel(int64_t i) const { return (pixels_apart ? i % channels : i / pixels) * kLanes; }
};

// t: a row for each pixel from p on with the channels from c on, or a row for each channel with the pixels
static EDM_INLINE void load_tile(const View& m, int64_t p, int64_t c, bool by_pixel, V* t) {
    const bool pixels_apart = m.pixel != 1;
    const float* at = m.p + p * m.pixel + c * m.channel;
    const int64_t rows = pixels_apart ? m.end - p : m.channels - c, lanes = pixels_apart ? m.channels - c : m.end - p;
    const int64_t row = pixels_apart ? m.pixel : m.channel, lane = pixels_apart ? m.channel : 1;
    const bool whole = rows >= kLanes && lanes >= kLanes;
    if (whole && lane == 1) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) t[i] = load(at + i * row);
    } else if (whole && lane == 3) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) t[i] = load_thirds(at + i * row);
    } else {
        for (int i = 0; i < kLanes; ++i) t[i] = i < rows ? load_steps(at + i * row, lane, lanes) : V{};
    }
    if (pixels_apart != by_pixel) transpose(t);
}

static EDM_INLINE void store_rows(float* to, int64_t pitch, const V* t, int64_t rows) {
    if (rows >= kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store(to + i * pitch, t[i]);
    } else {
        for (int64_t i = 0; i < rows; ++i) store(to + i * pitch, t[i]);
    }
}

// Pixels from `first` on as rows of channels: channel c of pixel p goes to
// rows[(c / kPanel) panel + (p - first) pitch + c % kPanel]; zeros up to a multiple of kPanel channels.
static void pack_pixels(const View& m, int64_t first, float scale, float* rows, int64_t pitch, int64_t panel) {
    const V factor = set1(scale);
    const Tiles tiles(m, first, m.end, padded(m.channels));
    for (int64_t tile = 0; tile < tiles.count(); ++tile) {
        const int64_t p = tiles.pixel(tile), c = tiles.channel(tile);
        V t[kLanes];
        load_tile(m, p, c, true, t);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) t[i] = t[i] * factor;
        store_rows(rows + c / kPanel * panel + (p - first) * pitch + c % kPanel, pitch, t, m.end - p);
    }
}

// All pixels as panels of kPanel pixels, one row for each channel; zeros after the last pixel.
static void pack_channels(const View& m, float* panels) {
    const Tiles tiles(m, 0, padded(m.end), m.channels);
    for (int64_t tile = 0; tile < tiles.count(); ++tile) {
        const int64_t p = tiles.pixel(tile), c = tiles.channel(tile);
        V t[kLanes];
        load_tile(m, p, c, false, t);
        float* to = panels + p / kPanel * m.channels * kPanel + c * kPanel + p % kPanel;
        store_rows(to, kPanel, t, m.channels - c);
    }
}

// Rows of channels, of the pixels from `first` on, to m; row i times factors[i step].
static void unpack_pixels(const float* rows, int64_t pitch, const float* factors, int64_t step, const View& m,
                          int64_t first) {
    const bool pixels_apart = m.pixel != 1;
    const int64_t row = pixels_apart ? m.pixel : m.channel, lane = pixels_apart ? m.channel : 1;
    const Tiles tiles(m, first, m.end, m.channels);
    for (int64_t tile = 0; tile < tiles.count(); ++tile) {
        const int64_t p = tiles.pixel(tile), c = tiles.channel(tile);
        const int64_t pixels = m.end - p, channels = m.channels - c;
        const float *from = rows + (p - first) * pitch + c, *factor = factors + (p - first) * step;
        V t[kLanes];
        if (pixels >= kLanes) {
#pragma GCC unroll 16
            for (int i = 0; i < kLanes; ++i) t[i] = load(from + i * pitch) * set1(factor[i * step]);
        } else {
            for (int i = 0; i < kLanes; ++i) t[i] = i < pixels ? load(from + i * pitch) * set1(factor[i * step]) : V{};
        }
        if (!pixels_apart) transpose(t);
        float* to = m.p + p * m.pixel + c * m.channel;
        const int64_t count = pixels_apart ? pixels : channels, lanes = pixels_apart ? channels : pixels;
        if (lane == 1 && lanes >= kLanes) {
            store_rows(to, row, t, count);
        } else {
            for (int64_t i = 0; i < std::min<int64_t>(kLanes, count); ++i) store_steps(to + i * row, lane, t[i], lanes);
        }
    }
}
EDM_END
