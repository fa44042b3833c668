// What the convolution and its backward share: how outputs are numbered.
#pragma once

#include "../conv2d.h"
#include "_scratch.h"

namespace edm {
namespace {

struct Place {
    int64_t n, y, x;  // first output of a tile
};

constexpr int64_t tile_of(int algorithm) {
    return algorithm == kWinograd2 ? 2 : algorithm == kWinograd4 || algorithm == kWinograd4Int16 ? 4 : 1;
}

// outputs of all images in a row, grouped in tiles of `tile` squared
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

}  // namespace
}  // namespace edm
