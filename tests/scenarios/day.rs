//! A busy-cloud day in a few seconds: `tests/load/day.sh` plays it at length.

use std::time::Duration;

use anyhow::Result;
use postern_tests::day::{self, Day, Report, SetUp};

async fn play(set_up: SetUp) -> Result<Report> {
    // Less than comes before the cloud dies for the first time: so the limit has something to hold back.
    day::play(&Day { lasts: Duration::from_secs(20), per_second: 4.0, cloud_takes: 12, set_up }).await
}

#[tokio::test]
async fn with_two_nodes_nobody_notices_that_the_cloud_is_busy_and_dies_twice() -> Result<()> {
    let report = play(SetUp::Nodes).await?;
    assert_eq!((report.requests, report.answered), (80, 80), "{:?}", report.failures);
    assert_eq!(report.too_many, 0, "the limit of the cloud was never exceeded");
    assert!(report.by_placement["cloud"] > 0 && report.by_placement["nodes"] > 0, "{:?}", report.by_placement);
    Ok(())
}

#[tokio::test]
async fn with_the_engine_what_is_classified_is_answered_here() -> Result<()> {
    let report = play(SetUp::Local).await?;
    assert_eq!((report.requests, report.answered), (80, 80), "{:?}", report.failures);
    assert_eq!((report.classified, report.by_placement["local"] >= 8), ((8, 8), true), "{:?}", report.by_placement);
    Ok(())
}
