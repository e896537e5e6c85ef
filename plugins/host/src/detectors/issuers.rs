//! Tokens that can be told by how their issuers begin them: facts that the issuers publish, so that scanners find them.

use super::runs::{is_alphanumeric, is_base64, is_base64url, is_hex, is_upper};

/// How tokens of an issuer begin; the characters behind that; how many there are at least.
pub(super) struct Issuer {
    pub(super) prefixes: &'static [&'static str],
    pub(super) is_in: fn(u8) -> bool,
    pub(super) least: usize,
}

const fn of(prefixes: &'static [&'static str], is_in: fn(u8) -> bool, least: usize) -> Issuer {
    Issuer { prefixes, is_in, least }
}

/// A JSON Web Token (RFC 7519) and SendGrid's keys are in parts: [`secrets`](super::secrets) reads them.
pub(super) const WEB_TOKEN: &str = "eyJ";
pub(super) const MAIL_KEY: &str = "SG.";

pub(super) const ISSUERS: [Issuer; 64] = [
    of(&[WEB_TOKEN, MAIL_KEY], is_base64url, usize::MAX),
    // OpenAI (also `sk-proj-`, `sk-svcacct-`, `sk-admin-`), Anthropic (`sk-ant-`), OpenRouter, DeepSeek and many like them.
    of(&["sk-"], is_base64url, 20),
    of(&["sess-"], is_alphanumeric, 40), // OpenAI, sessions
    of(&["sk_live_", "sk_test_", "rk_live_", "rk_test_"], is_alphanumeric, 16), // Stripe
    of(&["whsec_"], is_base64, 32),      // Stripe and others: webhooks
    of(&["ghp_", "gho_", "ghu_", "ghs_", "ghr_"], is_alphanumeric, 36), // GitHub
    of(&["github_pat_"], is_base64url, 22), // GitHub, fine-grained
    of(
        &[
            "glpat-",
            "gldt-",
            "glrt-",
            "glrtr-",
            "glptt-",
            "glcbt-",
            "glimt-",
            "glft-",
            "glsoat-",
            "gloas-",
            "glffct-",
            "glagent-",
            "GR1348941",
        ],
        is_base64url,
        20,
    ), // GitLab
    of(&["ATBB"], is_alphanumeric, 28),  // Bitbucket
    of(&["ATATT3", "ATCTT3"], is_atlassian, 60), // Atlassian
    of(&["AKIA", "ASIA", "ABIA", "ACCA"], is_upper, 16), // AWS: access keys
    of(&["ABSK"], is_base64, 100),       // AWS Bedrock
    of(&["LTAI", "AKID", "AKLT"], is_alphanumeric, 12), // Alibaba Cloud, Tencent Cloud, Volcengine
    of(&["AIza"], is_base64url, 35),     // Google: API keys
    of(&["GOCSPX-"], is_base64url, 24),  // Google: OAuth clients
    of(&["ya29."], is_base64url, 20),    // Google: OAuth access
    of(&["1//0"], is_base64url, 40),     // Google: OAuth refresh
    of(
        &[
            "xoxa-",
            "xoxb-",
            "xoxc-",
            "xoxd-",
            "xoxe-",
            "xoxe.xoxb-",
            "xoxe.xoxp-",
            "xoxo-",
            "xoxp-",
            "xoxr-",
            "xoxs-",
            "xapp-",
        ],
        is_base64url,
        10,
    ), // Slack
    of(&["hooks.slack.com/services/"], is_path, 40), // Slack: webhooks
    of(&["discord.com/api/webhooks/", "discordapp.com/api/webhooks/"], is_path, 60), // Discord: webhooks
    of(&["hf_", "api_org_", "gsk_"], is_alphanumeric, 30), // Hugging Face, Groq
    of(&["xai-"], is_alphanumeric, 60),  // xAI
    of(&["pplx-"], is_alphanumeric, 40), // Perplexity
    of(&["nvapi-"], is_base64url, 40),   // NVIDIA
    of(&["tgp_v1_"], is_base64url, 40),  // Together AI
    of(&["csk-"], is_alphanumeric, 40),  // Cerebras
    of(&["r8_"], is_alphanumeric, 36),   // Replicate
    of(&["jina_"], is_alphanumeric, 40), // Jina AI
    of(&["tvly-"], is_base64url, 20),    // Tavily
    of(&["pcsk_"], is_base64url, 40),    // Pinecone
    of(&["lsv2_pt_", "lsv2_sk_"], is_base64url, 32), // LangSmith
    of(&["dapi"], is_hex, 32),           // Databricks
    of(&["npm_"], is_alphanumeric, 36),  // npm
    of(&["pypi-"], is_base64url, 50),    // PyPI
    of(&["rubygems_"], is_hex, 48),      // RubyGems
    of(&["dckr_pat_", "dckr_oat_"], is_base64url, 27), // Docker
    of(&["AGE-SECRET-KEY-1"], is_upper, 58), // age
    of(&["hvs.", "hvb.", "hvr."], is_base64url, 24), // HashiCorp Vault
    of(&["dop_v1_", "doo_v1_", "dor_v1_"], is_hex, 64), // DigitalOcean
    of(&["dp.pt.", "dp.st.", "dp.ct.", "dp.sa.", "dp.scim.", "dp.audit."], is_dotted, 40), // Doppler
    of(&["pul-"], is_hex, 40),           // Pulumi
    of(&["glsa_", "glc_"], is_base64url, 32), // Grafana
    of(&["sntrys_", "sntryu_"], is_base64, 60), // Sentry
    of(&["phx_"], is_alphanumeric, 32),  // PostHog
    of(&["NRAK-"], is_upper, 27),        // New Relic
    of(&["NRII-"], is_base64url, 32),
    of(&["lin_api_", "lin_oauth_"], is_alphanumeric, 32), // Linear
    of(&["ntn_"], is_alphanumeric, 40),                   // Notion
    of(&["secret_"], is_alphanumeric, 43),
    of(&["figd_"], is_base64url, 40),                          // Figma
    of(&["shpat_", "shpca_", "shppa_", "shpss_"], is_hex, 32), // Shopify
    of(&["sq0atp-", "sq0csp-"], is_base64url, 22),             // Square
    of(&["SK"], is_hex, 32),                                   // Twilio
    of(&["key-"], is_hex, 32),                                 // Mailgun
    of(&["xkeysib-"], is_base64url, 64),                       // Brevo
    of(&["mlsn."], is_hex, 60),                                // MailerSend
    of(&["PMAK-"], is_base64url, 50),                          // Postman
    of(&["fm1_", "fm2_", "fo1_"], is_base64, 40),              // Fly.io
    of(&["sbp_"], is_hex, 40),                                 // Supabase
    of(&["sb_secret_"], is_base64url, 20),
    of(&["pscale_tkn_", "pscale_pw_", "pscale_oauth_"], is_dotted, 32), // PlanetScale
    of(&["nfp_"], is_alphanumeric, 36),                                 // Netlify
    of(&["rzp_live_", "rzp_test_"], is_alphanumeric, 14),               // Razorpay
    of(&["EAACEdEose0cBA"], is_alphanumeric, 20),                       // Facebook
];

fn is_dotted(byte: u8) -> bool {
    is_base64url(byte) || byte == b'.'
}

fn is_atlassian(byte: u8) -> bool {
    is_base64url(byte) || byte == b'='
}

fn is_path(byte: u8) -> bool {
    is_base64url(byte) || byte == b'/'
}
