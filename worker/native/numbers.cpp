#include "numbers.h"

#include <charconv>
#include <cstring>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "eight digits are read as one little-endian number"
#endif

namespace keyfold {

namespace {

constexpr int kDeepest = 16;         // nesting of members that nobody wants
constexpr int kLongest = 64;         // of a number's text
constexpr int kExactInteger = 18;    // digits of an integer that is an int64 for sure
constexpr int kExactDigits = 19;     // digits that 64 bits hold for sure
constexpr int kSafeDigits = 40;      // with kSafeExponent: of a number that is finite for sure
constexpr int kExponentDigits = 4;   // more are none of a finite double's
constexpr int kSafeExponent = 200;

// Powers of ten that a double holds exactly.
constexpr double kPowers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                              1e8,  1e9,  1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
                              1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
constexpr int kLastPower = 22;
constexpr double kSigns[] = {1.0, -1.0};
constexpr uint64_t kWholePowers[] = {1,      10,      100,      1000,     10000,
                                     100000, 1000000, 10000000, 100000000};
constexpr uint64_t kEach = 0x0101010101010101;

bool is_digit(uint8_t byte) { return static_cast<uint8_t>(byte - '0') < 10; }

uint64_t eight(const uint8_t* at) {
    uint64_t bytes;
    std::memcpy(&bytes, at, 8);
    return bytes;
}

}  // namespace

// Where reading has come to in one record. Every look at a byte compares with the end first.
struct Cursor {
    const uint8_t* at;
    const uint8_t* end;

    ptrdiff_t left() const { return end - at; }
    bool is(uint8_t byte) const { return at != end && *at == byte; }
    bool take(uint8_t byte) {
        if (!is(byte)) return false;
        ++at;
        return true;
    }
    void space() {
        while (at != end && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t')) ++at;
    }
    bool word(const char* text, ptrdiff_t size) {
        if (left() < size || std::memcmp(at, text, static_cast<size_t>(size))) return false;
        at += size;
        return true;
    }
};

namespace {

// -- strings -------------------------------------------------------------------------------------

// Passes one character beyond ASCII: no overlong forms, no surrogates.
bool pass_character(Cursor& cursor) {
    const uint8_t lead = *cursor.at++;
    const int more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
    if (lead < 0xc2 || lead > 0xf4 || cursor.left() < more) return false;
    const uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    const uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (*cursor.at < low || *cursor.at > high) return false;
    for (int i = 1; i < more; ++i) {
        if ((cursor.at[i] & 0xc0) != 0x80) return false;
    }
    cursor.at += more;
    return true;
}

bool take_hex(Cursor& cursor, unsigned& unit) {
    if (cursor.left() < 4) return false;
    unit = 0;
    for (int i = 0; i < 4; ++i) {
        const uint8_t byte = *cursor.at++;
        const uint8_t letter = static_cast<uint8_t>((byte | 0x20) - 'a');
        if (!is_digit(byte) && letter >= 6) return false;
        unit = unit * 16 + (is_digit(byte) ? byte - '0' : letter + 10u);
    }
    return true;
}

// Passes an escape; of UTF-16 surrogates only a pair.
bool pass_escape(Cursor& cursor) {
    unsigned unit, second;
    if (!cursor.take('\\') || cursor.at == cursor.end) return false;
    const uint8_t kind = *cursor.at++;
    if (kind != 'u') return kind && std::strchr("\"\\/bfnrt", kind);
    if (!take_hex(cursor, unit)) return false;
    if (unit < 0xd800 || unit > 0xdfff) return true;
    return unit < 0xdc00 && cursor.word("\\u", 2) && take_hex(cursor, second) &&
           second >= 0xdc00 && second <= 0xdfff;
}

bool is_special(uint8_t byte) {
    return byte == '"' || byte == '\\' || byte < ' ' || byte >= 0x80;
}

// Passes a string, quotes included. What escapes mean is not looked at: where that matters, it
// must have none.
bool pass_string(Cursor& cursor, bool may_escape) {
    if (!cursor.take('"')) return false;
    for (;;) {
        for (; cursor.left() >= 8; cursor.at += 8) {
            const uint64_t bytes = eight(cursor.at);
            const uint64_t quotes = bytes ^ (kEach * '"'), escapes = bytes ^ (kEach * '\\');
            // A high bit for each byte that is a quote, a backslash, below a space or not ASCII;
            // above such a byte there may be false ones, so the loop below looks again.
            const uint64_t odd =
                (quotes - kEach) | (escapes - kEach) | (bytes - kEach * ' ') | bytes;
            if (odd & (kEach * 0x80)) break;
        }
        while (cursor.at != cursor.end && !is_special(*cursor.at)) ++cursor.at;
        if (cursor.at == cursor.end) return false;
        if (*cursor.at == '"') return cursor.take('"');
        if (*cursor.at >= 0x80) {
            if (!pass_character(cursor)) return false;
        } else if (!may_escape || !pass_escape(cursor)) {  // a control character is no escape
            return false;
        }
    }
}

// -- numbers -------------------------------------------------------------------------------------

// Appends a run of digits to `value`, modulo 2^64, and returns how many they are.
[[gnu::always_inline]] inline int take_digits(Cursor& cursor, uint64_t& value) {
    const uint8_t *const begin = cursor.at, *const end = cursor.end;
    const uint8_t* at = begin;
    uint64_t sum = value;
    for (int count = 8; count == 8 && end - at >= 8; at += count) {
        const uint64_t bytes = eight(at);
        uint64_t digits = bytes - kEach * '0';
        // The lowest high bit marks the first byte that is no digit.
        const uint64_t others = ((bytes + kEach * 0x46) | digits) & (kEach * 0x80);
        count = others ? __builtin_ctzll(others) / 8 : 8;
        if (count == 0) break;
        digits <<= 8 * (8 - count);  // zeros before them
        digits = digits * 10 + (digits >> 8);
        digits = ((digits & 0x000000ff000000ff) * 0x000f424000000064 +
                  ((digits >> 16) & 0x000000ff000000ff) * 0x0000271000000001) >> 32;
        sum = sum * kWholePowers[count] + digits;
    }
    for (; at != end && is_digit(*at); ++at) sum = sum * 10 + (*at - '0');
    cursor.at = at;
    value = sum;
    return static_cast<int>(at - begin);
}

// A number as JSON writes it.
struct Number {
    const uint8_t* begin;
    const uint8_t* end;
    bool negative;
    bool whole;         // neither fraction nor exponent
    int digits;         // before the exponent
    uint64_t mantissa;  // these digits, modulo 2^64
    int exponent;       // of ten, for the mantissa
};

bool take_exponent(Cursor& cursor, int& exponent) {
    const bool negative = cursor.take('-');
    if (!negative) cursor.take('+');
    uint64_t value = 0;
    const int digits = take_digits(cursor, value);
    if (digits == 0 || digits > kExponentDigits) return false;
    exponent += negative ? -static_cast<int>(value) : static_cast<int>(value);
    return true;
}

[[gnu::always_inline]] inline bool take_number(Cursor& cursor, Number& number) {
    number = {cursor.at, nullptr, cursor.is('-'), true, 0, 0, 0};
    cursor.at += number.negative;  // signs are hard to predict: no branch
    const bool zero = cursor.is('0');
    number.digits = take_digits(cursor, number.mantissa);
    if (number.digits == 0 || (zero && number.digits > 1)) return false;
    if (cursor.take('.')) {
        number.whole = false;
        const int places = take_digits(cursor, number.mantissa);
        if (places == 0) return false;
        number.digits += places;
        number.exponent = -places;
    }
    if (cursor.is('e') || cursor.is('E')) {
        number.whole = false;
        ++cursor.at;
        if (!take_exponent(cursor, number.exponent)) return false;
    }
    number.end = cursor.at;
    return number.end - number.begin <= kLongest;
}

// The nearest double.
[[gnu::always_inline]] inline bool nearest(const Number& number, double& value) {
    if (number.whole) {
        // -0 is an integer to Python: 0.
        if (number.digits > kExactInteger || (number.negative && number.mantissa == 0)) return false;
    } else if (number.digits > kExactDigits || number.mantissa >> 53 ||
               number.exponent < -kLastPower || number.exponent > kLastPower) {
        const char* end = reinterpret_cast<const char*>(number.end);
        const auto read = std::from_chars(reinterpret_cast<const char*>(number.begin), end, value);
        return read.ec == std::errc() && read.ptr == end;
    }
    // One operation on two exact doubles is rounded once, and so to the nearest.
    value = static_cast<double>(number.mantissa);
    if (number.exponent < 0) value /= kPowers[-number.exponent];
    if (number.exponent > 0) value *= kPowers[number.exponent];
    value *= kSigns[number.negative];
    return true;
}

// -- members that nobody wants -------------------------------------------------------------------

bool pass_value(Cursor& cursor, int deeper);

// Passes the rest of an array or object.
bool pass_members(Cursor& cursor, bool named, int deeper) {
    const uint8_t close = named ? '}' : ']';
    cursor.space();
    if (cursor.take(close)) return true;
    do {
        cursor.space();
        if (named) {
            if (!pass_string(cursor, true)) return false;
            cursor.space();
            if (!cursor.take(':')) return false;
            cursor.space();
        }
        if (!pass_value(cursor, deeper)) return false;
        cursor.space();
    } while (cursor.take(','));
    return cursor.take(close);
}

bool pass_value(Cursor& cursor, int deeper) {
    if (cursor.at == cursor.end) return false;
    switch (*cursor.at) {
        case '"': return pass_string(cursor, true);
        case 't': return cursor.word("true", 4);
        case 'f': return cursor.word("false", 5);
        case 'n': return cursor.word("null", 4);
        case '{':
        case '[': {
            const bool named = *cursor.at++ == '{';
            return deeper > 0 && pass_members(cursor, named, deeper - 1);
        }
        default: {
            Number number;
            return take_number(cursor, number) && number.digits <= kSafeDigits &&
                   number.exponent <= kSafeExponent && number.exponent >= -kSafeExponent;
        }
    }
}

}  // namespace

// -- records -------------------------------------------------------------------------------------

NumberReader::NumberReader(const std::vector<std::string_view>& names) : seen_(names.size(), 0) {
    for (size_t i = 0; i < names.size(); ++i) columns_.emplace(names[i], static_cast<int>(i));
}

bool NumberReader::name(Cursor& cursor, size_t place, int& column) {
    if (place < order_.size()) {
        const Known& known = order_[place];
        const auto size = static_cast<ptrdiff_t>(known.quoted.size());
        if (cursor.word(known.quoted.data(), size)) {
            column = known.column;
            return true;
        }
    }
    const char* begin = reinterpret_cast<const char*>(cursor.at);
    if (!pass_string(cursor, false)) return false;  // or it might be a name that is wanted
    const auto size = static_cast<size_t>(reinterpret_cast<const char*>(cursor.at) - begin);
    const std::string_view quoted(begin, size);
    const auto found = columns_.find(quoted.substr(1, size - 2));
    column = found == columns_.end() ? kOther : found->second;
    if (place == order_.size()) order_.push_back({quoted, column});
    else order_[place] = {quoted, column};
    return true;
}

bool NumberReader::read(const uint8_t* at, const uint8_t* end, double* row) {
    Cursor cursor{at, end};
    ++record_;
    size_t found = 0, place = 0;
    cursor.space();
    if (!cursor.take('{')) return false;
    do {
        int column;
        cursor.space();
        if (!name(cursor, place++, column)) return false;
        cursor.space();
        if (!cursor.take(':')) return false;
        cursor.space();
        if (column == kOther) {
            if (!pass_value(cursor, kDeepest)) return false;
        } else {
            uint64_t& seen = seen_[static_cast<size_t>(column)];
            Number number;
            if (seen == record_ || !take_number(cursor, number) || !nearest(number, row[column]))
                return false;
            seen = record_;
            ++found;
        }
        cursor.space();
    } while (cursor.take(','));
    if (!cursor.take('}')) return false;
    cursor.space();
    return cursor.at == cursor.end && found == seen_.size();
}

}  // namespace keyfold
