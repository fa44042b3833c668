// Argument structs from names and values; comes after csrc/arguments.h.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace edm {

using NamedValues = std::vector<std::pair<std::string, Value>>;  // an array's values one by one

// a number, perhaps an address; whichever the field needs is taken
inline Value value_of(double number, void* address) { return {int64_t(number), number, address}; }

// the struct that a function takes
inline std::vector<uint64_t> filled(const Function& function, const NamedValues& values) {
    std::vector<uint64_t> s(function.bytes / 8 + 1);
    std::vector<Field> fields = function.fields(function.use);
    for (const auto& [name, value] : values) {
        bool found = false;
        for (Field& field : fields)
            if (field.name == name) found = set(field, s.data(), value), field.required = kNone;
        if (!found) throw std::invalid_argument("no argument " + name);
    }
    for (const Field& field : fields)
        if (field.required) throw std::invalid_argument("needs " + field.name);
    return s;
}

}  // namespace edm
