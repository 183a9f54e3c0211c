// SPDX-License-Identifier: MIT
#include <butterfly/graph/io.hpp>

#include "graph/golden.hpp"
#include "support/catch.hpp"

#include <cstdio>
#include <random>

namespace bf  = butterfly;
namespace npz = butterfly::npz;
using bytes   = std::vector<std::byte>;

namespace {

bytes file_bytes(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    std::string const text((std::istreambuf_iterator<char>(file)), {});
    auto const* p = reinterpret_cast<std::byte const*>(text.data());
    return {p, p + text.size()};
}

bytes graph_bytes(bf::graph_view g) {
    std::string const path = "npz_test_graph.npz";
    bf::save_npz(g, path);
    bytes const out = file_bytes(path);
    std::remove(path.c_str());
    return out;
}

/// Archive of one member whose .npy is `content`, made by the writer and then patched: the writer cannot write it
/// itself.
bytes archive_of(std::string const& content, std::string const& name = "a") {
    // A u1 array whose data are the wanted file; then cut the writer's own header out and repair sizes and checksum.
    std::vector<std::uint8_t> const raw(content.begin(), content.end());
    std::vector<npz::member> const members{
        npz::make_member<std::uint8_t>(name, {static_cast<bf::index_t>(raw.size())}, raw)};
    bytes out               = npz::encode(members);
    std::size_t const front = 30 + name.size() + 4;
    out.erase(out.begin() + static_cast<std::ptrdiff_t>(front), out.begin() + static_cast<std::ptrdiff_t>(front + 128));
    std::uint32_t const crc = npz::crc32(std::as_bytes(std::span(raw)));
    std::size_t const entry = front + raw.size();
    std::size_t const end   = out.size() - 22;
    auto const patch        = [&](std::size_t at, std::size_t value) {
        for (std::size_t i = 0; i < 4; ++i) out[at + i] = static_cast<std::byte>(value >> (8 * i));
    };
    for (std::size_t const at : {std::size_t{14}, entry + 16}) {
        patch(at, crc);
        patch(at + 4, raw.size());
        patch(at + 8, raw.size());
    }
    patch(end + 16, entry);
    return out;
}

std::string
npy(std::string const& dict, std::string const& data, std::string const& version = std::string("\x01\x00", 2)) {
    std::string const text = dict + "\n";
    return "\x93NUMPY" + version + static_cast<char>(text.size() & 0xff) + static_cast<char>(text.size() >> 8) + text +
           data;
}

std::string refusal(bytes const& file) {
    try {
        static_cast<void>(npz::decode(file));
    } catch (bf::format_error const& e) {
        return e.what();
    }
    return "accepted";
}

using Catch::Matchers::Contains;

} // namespace

TEST_CASE("crc32 of the standard check text", "[graph]") {
    std::string const text = "123456789";
    auto const all         = std::as_bytes(std::span(text.data(), text.size()));
    REQUIRE(npz::crc32(all) == 0xcbf43926U);
    REQUIRE(npz::crc32(all.subspan(4), npz::crc32(all.first(4))) == 0xcbf43926U);
}

TEST_CASE("arrays of every type and rank survive a round trip", "[graph]") {
    std::vector<std::int32_t> const i{-1, 0, 2147483647, -2147483647 - 1, 5, 6};
    std::vector<std::uint8_t> const u{0, 255, 7};
    std::vector<float> const f{1.5F, -0.0F, 3e38F};
    std::vector<float> const none;
    std::vector<npz::member> const members{
        npz::make_member<std::int32_t>("rows", {1, 2, 3}, i), npz::make_member<std::uint8_t>("types", {3}, u),
        npz::make_member<float>("weights", {3, 1}, f), npz::make_member<float>("empty", {0, 7}, none),
        npz::make_member<float>("scalar", {}, std::span(f).first(1))};
    auto const back = npz::decode(npz::encode(members));
    REQUIRE(back.size() == members.size());
    for (std::size_t k = 0; k < back.size(); ++k) {
        REQUIRE(back[k].name == members[k].name);
        REQUIRE(back[k].shape == members[k].shape);
    }
    REQUIRE(back[0].values<std::int32_t>() == i);
    REQUIRE(back[1].values<std::uint8_t>() == u);
    REQUIRE(back[2].values<float>() == f);
    REQUIRE(back[3].values<float>().empty());
    REQUIRE(back[4].values<float>() == std::vector<float>{1.5F});
    REQUIRE_THROWS_AS(back[0].values<float>(), bf::format_error);
    REQUIRE(npz::encode(members) == npz::encode(members));
    REQUIRE(npz::decode(npz::encode({})).empty());
}

TEST_CASE("data of every array start at a multiple of 64 in their .npy", "[graph]") {
    for (bf::index_t n : {1, 10, 100, 100000}) {
        std::vector<std::uint8_t> const raw(static_cast<std::size_t>(n));
        auto const header = npz::format::npy_header(npz::make_member<std::uint8_t>("x", {1, 1, 1, n}, raw));
        REQUIRE(header.size() % 64 == 0);
        REQUIRE(header.back() == std::byte{'\n'});
    }
}

TEST_CASE("the writer refuses what no reader could read", "[graph]") {
    std::vector<std::uint8_t> const u{1, 2, 3};
    auto const one = [&](std::string name, std::vector<bf::index_t> shape) {
        return std::vector<npz::member>{npz::make_member<std::uint8_t>(std::move(name), std::move(shape), u)};
    };
    REQUIRE_THROWS_AS(npz::encode(one("a", {4})), bf::shape_error);
    REQUIRE_THROWS_AS(npz::encode(one("a", {-3})), bf::shape_error);
    REQUIRE_THROWS_AS(npz::encode(one("a", {bf::index_t{1} << 62, 8})), bf::shape_error);
    REQUIRE_THROWS_AS(npz::encode(one("", {3})), bf::shape_error);
    REQUIRE_THROWS_AS(npz::encode(one(std::string(201, 'x'), {3})), bf::shape_error);
    auto twice = one("a", {3});
    twice.push_back(twice.front());
    REQUIRE_THROWS_AS(npz::encode(twice), bf::shape_error);
    // Never read: the size alone is refused.
    std::vector<npz::member> const huge{{"big",
                                         npz::dtype::u1,
                                         {bf::index_t{1} << 32},
                                         {reinterpret_cast<std::byte const*>(u.data()), std::size_t{1} << 32}}};
    REQUIRE_THROWS_AS(npz::encode(huge), bf::capacity_error);
}

TEST_CASE("graphs survive a round trip through a file", "[graph]") {
    for (char const* name : {"t1", "t8", "t8_rewire", "t8_max_degree_0", "tb_three_cycles"}) {
        bf::graph const g = golden::abi_graph(name);
        REQUIRE(bf::load_npz(graph_bytes(g.view())) == g);
    }
    bf::graph const g       = golden::abi_graph("t8");
    bf::graph const earlier = golden::abi_graph("t3");
    bf::save_npz(earlier.view(), "npz_test_file.npz");
    bf::save_npz(g.view(), "npz_test_file.npz"); // replaces
    REQUIRE(bf::load_npz("npz_test_file.npz") == g);
    REQUIRE_FALSE(std::ifstream("npz_test_file.npz.part"));
    std::remove("npz_test_file.npz");
}

TEST_CASE("a file that numpy.savez wrote is read", "[graph]") {
    bf::graph const g = bf::load_npz(std::string(BUTTERFLY_TEST_DATA) + "/graph/numpy_savez.npz");
    REQUIRE(g == golden::abi_graph("t8"));
    REQUIRE_THROWS_WITH(bf::load_npz(std::string(BUTTERFLY_TEST_DATA) + "/graph/numpy_compressed.npz"),
                        Contains("compressed"));
}

TEST_CASE("an archive cut anywhere is refused", "[graph]") {
    bf::graph const t3 = golden::abi_graph("t3");
    bytes const whole  = graph_bytes(t3.view());
    for (std::size_t size = 0; size < whole.size(); ++size) {
        CAPTURE(size);
        REQUIRE_THROWS_AS(bf::load_npz(std::span(whole).first(size)), bf::format_error);
    }
    for (std::size_t size = 1; size < whole.size(); ++size) // the front is missing
        REQUIRE_THROWS_AS(bf::load_npz(std::span(whole).subspan(size)), bf::format_error);
}

TEST_CASE("every changed byte gives the same graph or a format_error", "[graph]") {
    bf::graph const g = golden::abi_graph("t3");
    bytes const whole = graph_bytes(g.view());
    int accepted      = 0;
    for (std::size_t at = 0; at < whole.size(); ++at) {
        for (int const flip : {0x01, 0x80, 0xff}) {
            bytes file = whole;
            file[at] ^= static_cast<std::byte>(flip);
            CAPTURE(at, flip);
            try {
                bf::graph const got = bf::load_npz(file);
                REQUIRE(got == g);
                ++accepted;
            } catch (bf::format_error const&) {
                continue;
            }
        }
    }
    // Only what nobody needs may change: versions, times, flags, attributes and the local copies of sizes and checksum.
    REQUIRE(accepted < 3 * 2 * 50);
}

TEST_CASE("bytes after the archive are refused, a comment is not", "[graph]") {
    bf::graph const t3 = golden::abi_graph("t3");
    bytes file         = graph_bytes(t3.view());
    file.push_back(std::byte{0});
    REQUIRE_THAT(refusal(file), Contains("no end record"));
    file[file.size() - 3] = std::byte{1};
    REQUIRE(refusal(file) == "accepted");
}

TEST_CASE("hostile lengths and offsets are refused", "[graph]") {
    bf::graph const t3          = golden::abi_graph("t3");
    bytes const whole           = graph_bytes(t3.view());
    std::size_t const end       = whole.size() - 22;
    auto const u32              = [](bytes const& file, std::size_t at) { return npz::format::reader(file).u32(at); };
    std::size_t const directory = u32(whole, end + 16);
    std::mt19937 random(3);
    auto const put = [](bytes& file, std::size_t at, std::uint32_t v, std::size_t n) {
        for (std::size_t i = 0; i < n; ++i) file[at + i] = static_cast<std::byte>(v >> (8 * i));
    };
    struct field {
        std::size_t at, size;
    };
    // Counts, sizes and offsets of the end record and both entries; local name and extra lengths.
    std::vector<field> fields{{end + 8, 2}, {end + 10, 2}, {end + 12, 4}, {end + 16, 4}, {26, 2}};
    for (std::size_t const entry : {directory, directory + 46 + 13})
        for (field const f : {field{20, 4}, field{24, 4}, field{28, 2}, field{30, 2}, field{32, 2}, field{42, 4}})
            fields.push_back({entry + f.at, f.size});
    for (field const f : fields)
        for (std::uint32_t const v : {0U, 1U, 0x7fffU, 0xfffeU, 0xffffU, 0x7fffffffU, 0x80000000U, 0xfffffffeU,
                                      0xffffffffU, static_cast<std::uint32_t>(random())}) {
            bytes file = whole;
            put(file, f.at, v, f.size);
            if (file == whole) continue;
            CAPTURE(f.at, v);
            REQUIRE_THROWS_AS(bf::load_npz(file), bf::format_error);
        }
}

TEST_CASE("a directory that counts fewer entries than it holds is refused", "[graph]") {
    bf::graph const t3         = golden::abi_graph("t3");
    bytes file                 = graph_bytes(t3.view());
    file[file.size() - 22 + 8] = file[file.size() - 22 + 10] = std::byte{1};
    REQUIRE_THAT(refusal(file), Contains("another size than its entries"));
}

TEST_CASE("members that overlap are refused: a small file cannot make a large result", "[graph]") {
    bf::graph const t3          = golden::abi_graph("t3");
    bytes file                  = graph_bytes(t3.view());
    std::size_t const end       = file.size() - 22;
    std::size_t const directory = npz::format::reader(file).u32(end + 16);
    std::copy_n(file.begin() + static_cast<std::ptrdiff_t>(directory), 59,
                file.begin() + static_cast<std::ptrdiff_t>(directory + 59));
    REQUIRE_THAT(refusal(file), Contains("has no local header"));
}

TEST_CASE("headers of .npy are parsed, not guessed", "[graph]") {
    std::string const good = "{'descr': '|u1', 'fortran_order': False, 'shape': (2,), }";
    REQUIRE(refusal(archive_of(npy(good, "ab"))) == "accepted");
    REQUIRE(refusal(archive_of(npy("{'shape':(1,2),'descr':'|u1','fortran_order':False}", "ab"))) == "accepted");
    REQUIRE(refusal(archive_of(npy("{'shape':(),'descr':'<f4','fortran_order':False}", "abcd"))) == "accepted");

    REQUIRE_THAT(refusal(archive_of(npy(good, "abc"))), Contains("has 3 bytes of data, its shape needs 2"));
    REQUIRE_THAT(refusal(archive_of(npy(good, "a"))), Contains("has 1 bytes of data"));
    REQUIRE_THAT(refusal(archive_of(npy(good, "ab", std::string("\x02\x00", 2)))), Contains("version 1.0"));
    REQUIRE_THAT(refusal(archive_of(npy(good, "ab", std::string("\x01\x01", 2)))), Contains("version 1.0"));
    REQUIRE_THAT(refusal(archive_of("\x93NUM")), Contains("truncated"));
    REQUIRE_THAT(refusal(archive_of(std::string("\x93NUMPY\x01\x00\xff\xff{", 11))), Contains("truncated"));

    for (char const* dict : {
             "",
             "{",
             "{}",
             "{'descr': '|u1', 'fortran_order': False}",
             "{'descr': '|u1', 'shape': (2,)}",
             "{'fortran_order': False, 'shape': (2,)}",
             "{'descr': '|u1', 'fortran_order': True, 'shape': (2,)}",
             "{'descr': '<i8', 'fortran_order': False, 'shape': (2,)}",
             "{'descr': '>i4', 'fortran_order': False, 'shape': (2,)}",
             "{'descr': '|O', 'fortran_order': False, 'shape': (2,)}",
             "{'descr': '|u1, 'fortran_order': False, 'shape': (2,)}",
             "{'descr': '|u1', 'fortran_order': False, 'shape': (2}",
             "{'descr': '|u1', 'fortran_order': False, 'shape': (-2,)}",
             "{'descr': '|u1', 'fortran_order': False, 'shape': (2.0,)}",
             "{'descr': '|u1', 'fortran_order': False, 'shape': (,)}",
             "{'descr': '|u1', 'fortran_order': False, 'shape': 2}",
             "{'descr': '|u1', 'fortran_order': False, 'shape': (2,)} x",
             "{'descr': '|u1', 'fortran_order': False, 'shape': (2,), 'shape': (2,)}",
             "{'descr': '|u1', 'fortran_order': False, 'shape': (2,), 'more': 'x'}",
             "{'descr': '|u1' 'fortran_order': False, 'shape': (2,)}",
             "{'descr': '|u1', 'fortran_order': False, 'shape': (9223372036854775808,)}",
             "{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999999,)}",
             "{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 4294967296, 2)}",
             "{'descr': '<i4', 'fortran_order': False, 'shape': (4611686018427387904,)}",
             "{'descr': '|u1', 'fortran_order': False, 'shape': "
             "(2,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1)}",
         }) {
        CAPTURE(dict);
        REQUIRE_THAT(refusal(archive_of(npy(dict, "ab"))), Contains("npz: a "));
        if (std::string(dict).find("922337") != std::string::npos ||
            std::string(dict).find("9999") != std::string::npos)
            REQUIRE_THAT(refusal(archive_of(npy(dict, "ab"))), Contains("a dimension that overflows"));
    }
}

TEST_CASE("members that are no .npy are left out", "[graph]") {
    bytes file = archive_of(npy("{'descr': '|u1', 'fortran_order': False, 'shape': (2,), }", "ab"));
    for (std::size_t i = 0; i + 4 <= file.size(); ++i)
        if (file[i] == std::byte{'.'} && file[i + 1] == std::byte{'n'}) file[i + 1] = std::byte{'t'};
    REQUIRE(npz::decode(file).empty());
}

TEST_CASE("a graph file must hold a valid graph", "[graph]") {
    std::vector<std::int32_t> const n{0, 1};
    std::vector<std::uint8_t> const t{2, 2};
    auto const load = [](std::vector<npz::member> const& members) { return bf::load_npz(npz::encode(members)); };
    auto const i4   = [&](std::vector<bf::index_t> s) {
        return npz::make_member<std::int32_t>("neigh_idx", std::move(s), n);
    };
    auto const u1 = [&](std::vector<bf::index_t> s) {
        return npz::make_member<std::uint8_t>("edge_type", std::move(s), t);
    };
    REQUIRE(load({u1({2, 1}), i4({2, 1})}).shape() == bf::graph_shape{1, 2, 1});
    REQUIRE(load({i4({1, 2, 1}), u1({1, 2, 1})}).shape() == bf::graph_shape{1, 2, 1});
    REQUIRE_THROWS_WITH(load({i4({2, 1})}), Contains("missing"));
    REQUIRE_THROWS_WITH(load({u1({2, 1})}), Contains("missing"));
    REQUIRE_THROWS_WITH(load({i4({2, 1}), u1({1, 2})}), Contains("differ in shape"));
    REQUIRE_THROWS_WITH(load({i4({2}), u1({2})}), Contains("1 dimensions"));
    REQUIRE_THROWS_WITH(load({i4({1, 1, 1, 2}), u1({1, 1, 1, 2})}), Contains("4 dimensions"));
    REQUIRE_THROWS_WITH(load({i4({1, 2}), u1({1, 2})}), Contains("neighbour 1 is outside [0, 1)"));
    REQUIRE_THROWS_WITH(load({npz::make_member<std::uint8_t>("neigh_idx", {2, 1}, t), u1({2, 1})}),
                        Contains("dtype |u1"));
    std::vector<std::int32_t> const none;
    std::vector<std::uint8_t> const nothing;
    REQUIRE_THROWS_AS(load({npz::make_member<std::int32_t>("neigh_idx", {2, 0}, none),
                            npz::make_member<std::uint8_t>("edge_type", {2, 0}, nothing)}),
                      bf::format_error);
    REQUIRE_THROWS_AS(load({npz::make_member<std::int32_t>("neigh_idx", {bf::index_t{1} << 40, 1, 0}, none),
                            npz::make_member<std::uint8_t>("edge_type", {bf::index_t{1} << 40, 1, 0}, nothing)}),
                      bf::format_error);
}

TEST_CASE("files that cannot be read or written say why, and leave nothing behind", "[graph]") {
    REQUIRE_THROWS_WITH(bf::load_npz("no/such/file.npz"), Contains("No such file"));
    REQUIRE_THROWS_AS(bf::load_npz("."), bf::format_error);
    bf::graph const g = golden::abi_graph("t8");
    REQUIRE_THROWS_WITH(bf::save_npz(g.view(), "no/such/folder/g.npz"), Contains("No such file"));
    REQUIRE_THROWS_AS(bf::save_npz(g.view(), "."), bf::format_error); // a folder is not replaced
    REQUIRE_FALSE(std::ifstream("..part"));
    bf::graph broken      = g;
    broken.neigh_idx()[0] = 99;
    bf::save_npz(g.view(), "npz_test_kept.npz");
    REQUIRE_THROWS_AS(bf::save_npz(broken.view(), "npz_test_kept.npz"), bf::graph_error);
    REQUIRE(bf::load_npz("npz_test_kept.npz") == g);
    std::remove("npz_test_kept.npz");
}

TEST_CASE("the most members there can be are read and written without comparing each with each", "[graph]") {
    std::vector<npz::member> members;
    for (int i = 0; i < 65534; ++i)
        members.push_back(npz::make_member<std::uint8_t>(std::string(190, 'x') + std::to_string(i), {0}, {}));
    bytes const file = npz::encode(members);
    REQUIRE(npz::decode(file).size() == members.size());
    members[65533].name = members[7].name;
    REQUIRE_THROWS_AS(npz::encode(members), bf::shape_error);
}
