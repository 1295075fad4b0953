"""LoRA (Hu et al. 2021, arXiv 2106.09685) around any model, by peft; merged or as an adapter when it is exported."""
