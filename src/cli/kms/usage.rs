//! `kms usage`: requests and keys of each month, and what AWS would ask for them.

use std::error::Error;

use clap::Args;
use serde_json::{Value, json};

use super::args::Output;
use super::backend::Backend;
use super::{print, show};

#[derive(Debug, Args)]
pub(super) struct UsageArgs {
    /// Only this month.
    #[arg(long, value_name = "YYYY-MM")]
    month: Option<String>,
    /// Price of a key, for a month, in US dollars.
    #[arg(long, value_name = "USD", default_value_t = 1.0)]
    price_key: f64,
    /// Price of 10,000 requests.
    #[arg(long, value_name = "USD", default_value_t = 0.03)]
    price_requests: f64,
    /// Price of 10,000 requests with asymmetric keys.
    #[arg(long, value_name = "USD", default_value_t = 0.15)]
    price_asymmetric: f64,
    /// Requests of a month that cost nothing.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    free_requests: u64,
    /// Price of an HSM, for an hour.
    #[arg(long, value_name = "USD", default_value_t = 1.5)]
    price_hsm_hour: f64,
    /// HSMs of the cluster that would do the same.
    #[arg(long, value_name = "N", default_value_t = 2)]
    hsms: u32,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(args: &UsageArgs, backend: &mut Backend) -> Result<(), Box<dyn Error>> {
    let prices = json!({
        "KeyMonth": args.price_key, "Requests": args.price_requests, "Asymmetric": args.price_asymmetric,
        "FreeRequests": args.free_requests, "HsmHour": args.price_hsm_hour, "Hsms": args.hsms,
    });
    let mut answer = backend.manage("Usage", &json!({ "Prices": prices }))?;
    if let (Some(month), Some(all)) = (&args.month, answer["Months"].as_array_mut()) {
        all.retain(|m| m["Month"] == **month);
    }
    if args.output.json {
        return show::json(&answer);
    }
    let number = |m: &Value, name: &str| m[name].as_f64().unwrap_or_default();
    let mut text = format!(
        "{:<8} {:>12} {:>10} {:>11} {:>12} {:>12}\n",
        "month", "requests", "failed", "key months", "AWS KMS", "CloudHSM"
    );
    for m in answer["Months"].as_array().into_iter().flatten() {
        text += &format!(
            "{:<8} {:>12} {:>10} {:>11.2} {:>12.2} {:>12.2}\n",
            m["Month"].as_str().unwrap_or_default(),
            m["Requests"].to_string(),
            m["Failed"].to_string(),
            number(m, "KeyMonths"),
            number(m, "KmsCost"),
            number(m, "HsmCost"),
        );
    }
    text += "Estimates in US dollars; the current month up to now. Keys that were deleted are not in it.\n";
    print(&text)
}
