// The rows of a matrix as a product walks along them, all at once.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../simd/isas.h"

EDM_BEGIN

// Hides a value from the compiler, which otherwise makes a pointer to every row out of a pitch, and has no registers
// left to keep them in.
template <class T>
static EDM_INLINE void hide(T& value) {
#if defined(__GNUC__)
    asm("" : "+r"(value));
#else
    (void)value;
#endif
}

// rows `pitch` elements apart
template <class T>
struct EvenRows {
    const T* first;
    int64_t pitch;
    EvenRows from(int64_t row, int64_t term) const { return {first + row * pitch + term, pitch}; }

    // An address is a register plus another times 1, 2, 4 or 8: a base for every four rows and two multiples of the
    // pitch take five registers for twelve rows, where a pointer to each would leave too few.
    template <int R>
    struct Walk {
        const T* base[(R + 3) / 4];
        int64_t pitch, triple;
        explicit Walk(const EvenRows& rows) : pitch(rows.pitch), triple(3 * rows.pitch) {
            for (int i = 0; i < R; i += 4) base[i / 4] = rows.first + i * pitch;
            hide(pitch), hide(triple);
        }
        EDM_INLINE const T* operator[](int i) const {
            return base[i / 4] + (i % 4 == 3 ? triple : i % 4 * pitch);
        }
        EDM_INLINE void advance(int64_t n) {
#pragma GCC unroll 4
            for (int i = 0; i < (R + 3) / 4; ++i) hide(base[i] += n);
        }
    };
};

// rows anywhere
template <class T>
struct ListedRows {
    const T* const* rows;
    int64_t first = 0;  // term
    ListedRows from(int64_t row, int64_t term) const { return {rows + row, first + term}; }

    template <int R>
    struct Walk {
        const T* row[R];
        int64_t at;
        explicit Walk(const ListedRows& rows) : at(rows.first) { std::copy(rows.rows, rows.rows + R, row); }
        EDM_INLINE const T* operator[](int i) const { return row[i] + at; }
        EDM_INLINE void advance(int64_t n) { at += n; }
    };
};
EDM_END
