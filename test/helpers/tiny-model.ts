/** Small models and files made on the spot. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';

/** A valid config of a small Llama; override fields, set them to undefined to drop them. */
export function tinyConfig(overrides: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    architectures: ['LlamaForCausalLM'],
    hidden_act: 'silu',
    hidden_size: 32,
    intermediate_size: 48,
    max_position_embeddings: 256,
    num_attention_heads: 4,
    num_hidden_layers: 2,
    num_key_value_heads: 2,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    tie_word_embeddings: false,
    torch_dtype: 'float32',
    vocab_size: 64,
    bos_token_id: 1,
    eos_token_id: 2,
    ...overrides,
  };
}

/** A directory with the given files (objects are written as JSON), removed when the test ends. */
export function temporaryModel(
  t: TestContext,
  files: Record<string, string | Uint8Array | object>,
): string {
  const directory = mkdtempSync(join(tmpdir(), 'millrace-test-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  for (const [name, content] of Object.entries(files)) {
    const raw = typeof content === 'string' || content instanceof Uint8Array;
    writeFileSync(join(directory, name), raw ? content : JSON.stringify(content));
  }
  return directory;
}

/** The bytes of a safetensors file with this header and this much data. */
export function safetensorsBytes(header: object | string, dataLength: number): Buffer {
  const json = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  return Buffer.concat([length, json, Buffer.alloc(dataLength)]);
}

/** A safetensors file with zeros in float32 tensors of these shapes. */
export function zeroTensors(shapes: Record<string, readonly number[]>, dtype = 'F32'): Buffer {
  const header: Record<string, object> = {};
  const size = dtype === 'F32' ? 4 : 2;
  let end = 0;
  for (const [name, shape] of Object.entries(shapes)) {
    const begin = end;
    end += size * shape.reduce((a, b) => a * b, 1);
    header[name] = { dtype, shape, data_offsets: [begin, end] };
  }
  return safetensorsBytes(header, end);
}
