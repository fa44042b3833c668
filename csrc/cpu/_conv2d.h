// What the convolution and its backward share: how outputs are numbered.
#pragma once

#include "../conv2d.h"
#include "_scratch.h"

namespace edm {
namespace {

constexpr int64_t kMostTiles = 24, kMostPixels = 48;  // of a block

struct Place {
    int64_t n, y, x;  // first output of a tile
};

constexpr int64_t tile_of(int algorithm) {
    return algorithm == kWinograd2 || algorithm == kWinograd2Up ? 2 : algorithm == kDirect || algorithm == kInt16 ? 1 : 4;
}

// outputs of all images in a row, grouped in tiles of `tile` squared; where x is doubled, those of one phase
struct Cut {
    int64_t oh, ow, tile, tiles_y, tiles_x, total;
    explicit Cut(const Conv2d& s)
        : oh(s.h + 2 * s.padding - s.kernel + 1), ow(s.w + 2 * s.padding - s.kernel + 1),
          tile(tile_of(s.algorithm)), tiles_y((oh + tile - 1) / tile),
          tiles_x((ow + tile - 1) / tile), total(s.n * tiles_y * tiles_x) {}
    Place place(int64_t t) const {
        return {t / (tiles_x * tiles_y), t / tiles_x % tiles_y * tile, t % tiles_x * tile};
    }
};

// The outputs of a doubled image at (2 i + y, 2 j + x) are those of one phase: there the 3x3 filter meets 2x2 pixels of
// the image that was doubled, and its taps on the same pixel are one. Without doubling there is one phase.
struct Phase {
    int64_t step = 1, y = 0, x = 0;
    static Phase of(int64_t index) { return {2, index / 2, index % 2}; }
    int64_t index() const { return 2 * y + x; }
};

constexpr bool int16_products(int algorithm) {
    return algorithm == kInt16 || algorithm == kWinograd4Int16 || algorithm == kWinograd4UpInt16;
}

constexpr bool doubles(int algorithm) {
    return algorithm == kWinograd2Up || algorithm == kWinograd4Up || algorithm == kWinograd4UpInt16;
}

}  // namespace
}  // namespace edm
