# SPDX-License-Identifier: MIT
# The parser of row texts stands with the bench programs; the program `topology` is run as a person runs it.
target_include_directories(topology_tests PRIVATE "${PROJECT_SOURCE_DIR}/bench/support")

if(BUTTERFLY_BUILD_BENCH)
  function(add_topology_program_test name expected)
    add_test(NAME topology.program.${name} COMMAND topology ${ARGN})
    set_tests_properties(topology.program.${name} PROPERTIES LABELS topology PASS_REGULAR_EXPRESSION "${expected}")
  endfunction()
  add_topology_program_test(fan_in "130 before overlaps, dense 4095: 31.5x fewer" --row
                            cycle:seed=7,window:64,landmark:64 --nodes 4096 --heads 1)
  add_topology_program_test(json "\"degree\": 6,.*\"cycle\": 16,.*\"fan_in\": " --row
                            cycle:seed=0,window:2,landmark:3,self --nodes 8 --heads 1 --json - --hops 4)
  add_topology_program_test(far_stride "edges +500000," --row fixed_stride:stride=500000:count=1000000 --nodes 1000000 --heads 1
                            --head-dim 0)
  add_topology_program_test(schedule "published +reaches 41 of 256" --schedule --layers 6 --blocks 256)

  function(add_topology_refusal_test name expected)
    add_test(NAME topology.program.${name}
             COMMAND "${CMAKE_COMMAND}" "-DPROGRAM=$<TARGET_FILE:topology>" "-DARGUMENT=${ARGN}" -DSTATUS=2
                     "-DEXPECT=${expected}" -P "${PROJECT_SOURCE_DIR}/cmake/exit_status.cmake")
    set_tests_properties(topology.program.${name} PROPERTIES LABELS topology TIMEOUT 60)
  endfunction()
  add_topology_refusal_test(bad_row "^topology: row text 'nope': no rule 'nope'" --row nope)
  add_topology_refusal_test(bad_stride "^topology: landmark: stride is 0" --row landmark:0)
  add_topology_refusal_test(bad_nodes "^topology: heads 8 and nodes 0" --nodes 0)
  add_topology_refusal_test(bad_layers "^topology: --layers: " --schedule --layers 0)
  add_topology_refusal_test(dump_of_no_name "^topology: --dump -: a file is needed" --dump -)
  add_topology_refusal_test(bad_dump "^topology: --dump /nonexistent/x.npz: " --dump /nonexistent/x.npz)
  add_topology_refusal_test(no_dump_of_schedule "^topology: .*excludes" --schedule --dump x.npz)
  if(CMAKE_SYSTEM_NAME STREQUAL "Linux") # elsewhere the system does not tell what is available
    add_topology_refusal_test(no_memory_of_cycles "^topology: --nodes 2000000000, --heads 1: the graph needs about " --nodes
                              2000000000 --heads 1 --row cycle:cycles=1000 --max-degree 1)
    add_topology_refusal_test(no_memory_of_hops "^topology: --nodes 1000000000, --heads 1: the graph needs about " --nodes
                              1000000000 --heads 1 --row self --hops 1 --head-dim 0)
    add_topology_refusal_test(no_memory_of_operands "^topology: --head-dim 4096: the graph and attention along it need about "
                              --nodes 100000000 --heads 1 --row self --head-dim 4096)
    add_topology_refusal_test(no_memory "^topology: --nodes 2000000000, --heads 4096: the graph needs about " --nodes
                              2000000000 --heads 4096 --row self)
  endif()
endif()
