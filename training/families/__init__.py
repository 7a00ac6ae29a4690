"""The families of networks that `[model] family` names: one small builder each."""
