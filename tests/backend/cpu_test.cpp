// SPDX-License-Identifier: MIT
#include <butterfly/backend/host/isa_level.hpp>
#include <butterfly/backend/simd/bf16_unit.hpp>
#include <butterfly/backend/simd/cpu.hpp>

#include "support/catch.hpp"

#include <fstream>
#include <initializer_list>
#include <set>
#include <sstream>
#include <string>

namespace bf = butterfly;
using bf::backend::bf16_unit;
using bf::backend::isa_level;

namespace {

constexpr bf16_unit units[]  = {bf16_unit::fma, bf16_unit::dot, bf16_unit::tile};
constexpr isa_level levels[] = {isa_level::baseline, isa_level::x86_v3, isa_level::x86_v4, isa_level::x86_zen4,
                                isa_level::x86_amx};

#if defined(__x86_64__) && defined(__linux__)
/// The words of one line of /proc/cpuinfo, of the first CPU.
std::set<std::string> words_of(std::string const& name) {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        if (line.rfind(name, 0) != 0) continue;
        std::istringstream text(line.substr(line.find(':') + 1));
        std::set<std::string> words;
        for (std::string word; text >> word;) words.insert(word);
        return words;
    }
    return {};
}
#endif

} // namespace

#if defined(__x86_64__) && defined(__linux__)
// Linux shows what it saves the registers of, and so does cpu::found().
TEST_CASE("what is found is what Linux shows", "[backend]") {
    auto const flags = words_of("flags");
    REQUIRE(flags.count("sse2") == 1);
    auto const all = [&](std::initializer_list<char const*> wanted) {
        for (char const* flag : wanted)
            if (flags.count(flag) == 0) return false;
        return true;
    };
    bool const v3   = all({"avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "movbe"});
    bool const v4   = v3 && all({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"});
    auto const& cpu = bf::backend::cpu::found();
    REQUIRE(cpu.avx2 == v3);
    REQUIRE(cpu.avx512 == v4);
    REQUIRE(cpu.avx512_vbmi == (v4 && all({"avx512vbmi"})));
    REQUIRE(cpu.avx512_vnni == (v4 && all({"avx512_vnni"})));
    REQUIRE(cpu.avx512_bf16 == (v4 && all({"avx512_bf16"})));
    REQUIRE(cpu.avx512_fp16 == (v4 && all({"avx512_fp16"})));
    REQUIRE(cpu.amx_bf16 == (v4 && all({"amx_tile", "amx_bf16"})));
    REQUIRE(cpu.amx_int8 == (v4 && all({"amx_tile", "amx_int8"})));
    REQUIRE(cpu.amd == (words_of("vendor_id").count("AuthenticAMD") == 1));
}
#endif

TEST_CASE("what is found once is found again", "[backend]") {
    auto const asked  = bf::backend::cpu::detail::ask();
    auto const& known = bf::backend::cpu::found();
    REQUIRE(asked.avx2 == known.avx2);
    REQUIRE(asked.avx512 == known.avx512);
    REQUIRE(asked.avx512_bf16 == known.avx512_bf16);
    REQUIRE(asked.amx_bf16 == known.amx_bf16);
}

TEST_CASE("a unit that is chosen is one of this CPU", "[backend]") {
    for (bf16_unit const asked :
         {bf16_unit::best, bf16_unit::fma, bf16_unit::dot, bf16_unit::tile, bf16_unit::emulated}) {
        bf16_unit const unit = resolve(asked);
        CAPTURE(name_of(asked), name_of(unit));
        REQUIRE(unit != bf16_unit::best);
        REQUIRE(available(unit));
        if (asked != bf16_unit::best) REQUIRE(unit == (available(asked) ? asked : bf16_unit::fma));
    }
    for (bf16_unit const most : units) {
        bf16_unit const unit = best_up_to(most);
        CAPTURE(name_of(most), name_of(unit));
        REQUIRE(available(unit));
        REQUIRE(unit <= most);
    }
    REQUIRE(resolve(bf16_unit::best) == best_up_to(bf16_unit::tile));
    REQUIRE(best_up_to(bf16_unit::fma) == bf16_unit::fma);
}

TEST_CASE("levels include those before them", "[backend]") {
    REQUIRE(available(isa_level::baseline));
    for (isa_level const level : levels) {
        CAPTURE(name_of(level));
        REQUIRE(level <= isa_level::highest);
        if (level != isa_level::baseline && available(level))
            REQUIRE(available(static_cast<isa_level>(static_cast<int>(level) - 1)));
        REQUIRE(available(bf16_unit_of(level)));
        if (level < isa_level::x86_zen4) REQUIRE(bf16_unit_of(level) == bf16_unit::fma);
        if (level < isa_level::x86_amx) REQUIRE(bf16_unit_of(level) != bf16_unit::tile);
    }
    REQUIRE(bf16_unit_of(isa_level::highest) == resolve(bf16_unit::best));
    REQUIRE(std::string(name_of(isa_level::highest)) == "x86_amx");
}
