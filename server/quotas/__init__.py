"""Token quotas that hold (G6): buckets, holds, settlement."""
