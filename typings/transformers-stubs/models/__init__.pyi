"""The models that this project imports from transformers, whose own list of 400 is half of all that pyright reads."""

from transformers.models.auto import *
from transformers.models.bert import *
from transformers.models.bloom import *
from transformers.models.gemma2 import *
from transformers.models.gemma3 import *
from transformers.models.gpt2 import *
from transformers.models.llama import *
from transformers.models.llama4 import *
from transformers.models.mixtral import *
from transformers.models.siglip import *
