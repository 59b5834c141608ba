"""Fine-tuning: encoders and decoders of others on the tasks of GLUE and on labelled texts (pip install 'fimlens[finetune]')."""
