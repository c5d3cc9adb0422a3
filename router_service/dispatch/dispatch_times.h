#pragma once

#include "absl/time/time.h"

namespace expertmesh::router {

// When a batch is overdue at an endpoint whose times are not known yet.
constexpr absl::Duration kFirstDeadline = absl::Seconds(1);

// How long rows wait for somebody to serve them though no token has to: an
// endpoint that an error closed is asked again within it.
constexpr absl::Duration kMoment = absl::Milliseconds(50);

}  // namespace expertmesh::router
