// Native functions and their arguments by name: how Python, and the programs of the tests, fill the structs and call.
// Each struct has the list of its fields beside it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "common.h"

namespace edm {

enum class Kind { kInt, kInt64, kDouble, kBool, kPointer, kDoubles, kPointers };  // the last two: arrays

template <typename T>
constexpr Kind kind_of() {
    if (std::is_same_v<T, int>) return Kind::kInt;
    if (std::is_same_v<T, int64_t>) return Kind::kInt64;
    if (std::is_same_v<T, bool>) return Kind::kBool;
    if (std::is_array_v<T>) return std::is_pointer_v<std::remove_extent_t<T>> ? Kind::kPointers : Kind::kDoubles;
    static_assert(sizeof(T) == 8 || std::is_same_v<T, int> || std::is_same_v<T, bool> || std::is_array_v<T>);
    return std::is_pointer_v<T> ? Kind::kPointer : Kind::kDouble;
}

// which functions of an op an argument belongs to; kSize: those that tell the size of a buffer
enum Use : unsigned { kNone = 0, kForward = 1, kBackward = 2, kCuda = 4, kSize = 8, kAny = 15 };

struct Field {
    std::string name;
    size_t offset;
    Kind kind;
    unsigned required, optional;  // by which functions; what is left out is 0
    size_t most = 1, count = 0;   // of an array: its length, and the offset of the number of its values
};

// the name of a member: without _ptr, and that of a nested one with _ for the dot
inline std::string field_name(std::string member) {
    if (member.size() > 4 && member.compare(member.size() - 4, 4, "_ptr") == 0) member.resize(member.size() - 4);
    for (char& letter : member) letter = letter == '.' ? '_' : letter;
    return member;
}

inline Field array_field(Field field, size_t most, size_t count) {
    field.most = most, field.count = count;
    return field;
}

#define FIELD(required, optional, member, name) \
    Field { name, offsetof(S, member), kind_of<decltype(std::declval<S>().member)>(), required, optional }
#define BOTH(required, optional, member) FIELD(required, optional, member, field_name(#member))
#define MUST(uses, member) BOTH(uses, kNone, member)
#define MAY(uses, member) BOTH(kNone, uses, member)
#define LIST(uses, member, counter) array_field(MAY(uses, member), kMaxTerms, offsetof(S, counter))

template <typename S>
std::vector<Field> fields();

// the fields that one function reads
template <typename S>
std::vector<Field> fields_of(Use use) {
    std::vector<Field> own;
    for (Field& field : fields<S>())
        if ((field.required | field.optional) & use) own.push_back(std::move(field)), own.back().required &= use;
    return own;
}

struct Value {  // of the kind that the field is
    int64_t integer = 0;
    double real = 0;
    void* address = nullptr;
};

// sets a field of `arguments`, or appends to an array; false: the array is full
inline bool set(const Field& field, void* arguments, const Value& value) {
    char *start = static_cast<char*>(arguments), *at = start + field.offset;
    switch (field.kind) {
        case Kind::kInt: *reinterpret_cast<int*>(at) = int(value.integer); return true;
        case Kind::kInt64: *reinterpret_cast<int64_t*>(at) = value.integer; return true;
        case Kind::kDouble: *reinterpret_cast<double*>(at) = value.real; return true;
        case Kind::kBool: *reinterpret_cast<bool*>(at) = value.integer != 0; return true;
        case Kind::kPointer: *reinterpret_cast<void**>(at) = value.address; return true;
        default: break;
    }
    int& count = *reinterpret_cast<int*>(start + field.count);
    if (size_t(count) == field.most) return false;
    if (field.kind == Kind::kDoubles) reinterpret_cast<double*>(at)[count++] = value.real;
    else reinterpret_cast<void**>(at)[count++] = value.address;
    return true;
}

// A native function that takes the struct with these fields, as one of three kinds.
struct Function {
    const char* name;
    Use use;
    std::vector<Field> (*fields)(Use use);
    size_t bytes;                                                // of the struct
    int (*run)(const void* s, int threads);                      // on a CPU, for one instruction set
    int (*launch)(const void* s, int device, void* stream);      // on a GPU
    int64_t (*size)(const void* s);                              // tells the size of a buffer
};

struct Functions {
    const Function* first;
    int count;
    const Function* begin() const { return first; }
    const Function* end() const { return first + count; }
};

template <auto F, typename S>
constexpr Function described(const char* name, Use use, int (*)(const S&, int)) {
    const auto run = [](const void* s, int threads) { return F(*static_cast<const S*>(s), threads); };
    return {name, use, fields_of<S>, sizeof(S), run, nullptr, nullptr};
}

template <auto F, typename S>
constexpr Function described(const char* name, Use use, int (*)(const S&, int, void*)) {
    const auto launch = [](const void* s, int device, void* stream) {
        return F(*static_cast<const S*>(s), device, stream);
    };
    return {name, use, fields_of<S>, sizeof(S), nullptr, launch, nullptr};
}

template <auto F, typename S>
constexpr Function described(const char* name, Use use, int64_t (*)(const S&)) {
    const auto size = [](const void* s) { return F(*static_cast<const S*>(s)); };
    return {name, use, fields_of<S>, sizeof(S), nullptr, nullptr, size};
}

// F, which Python knows as F and this ending
#define FUNCTION(F, ending, use) ::edm::described<F>(#F ending, use, F)

}  // namespace edm
