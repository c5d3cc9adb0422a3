#pragma once

// DeepSeek's expert-parallel load balancer in plain loops, as published
// (github.com/deepseek-ai/EPLB; arXiv:2412.19437, section 3.4): what a planner
// has to match. It shares no code with the product.

#include <vector>

namespace expertmesh::reference {

struct EplbShape {
  int num_physical = 0;  // replicas of one layer, a multiple of num_hosts
  int num_groups = 1;    // of experts; a node gets whole groups
  int num_nodes = 1;     // divides num_hosts
  int num_hosts = 1;
};

// [num_hosts] expert ids of one layer, in the order packed; an expert may be
// named twice by a host, and then weighs double there. `rows` [num_experts].
// Hierarchical (groups to nodes, replication within nodes, replicas to hosts)
// where groups divide evenly over nodes, else global.
std::vector<std::vector<int>> EplbPlacement(const std::vector<double>& rows,
                                            const EplbShape& shape);

// [num_hosts] rows of each host, an expert's split evenly over its replicas.
std::vector<double> EplbHostRows(const std::vector<double>& rows,
                                 const std::vector<std::vector<int>>& hosts);

}  // namespace expertmesh::reference
