/** Writes a quantized copy of a checkpoint, a tensor at a time. */
import { copyFileSync, existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Backend } from '../backend/backend.js';
import { InvalidParameterError, ModelError } from '../errors.js';
import { readJsonObject } from '../model/config-fields.js';
import { loadModel } from '../model/load-model.js';
import type { Program, WeightPart } from '../model/program.js';
import { readTensor } from '../model/read-tensor.js';
import { type PlannedTensor, SafetensorsWriter } from '../model/safetensors-writer.js';
import {
  BYTES,
  type FileTensor,
  type IntegerStorage,
  type WeightSource,
} from '../model/weights.js';
import { calibrate } from './calibrate.js';
import { type CodedMatrix, codeMatrix } from './code-matrix.js';
import { plannedTensors, quantizationConfig, tensorData } from './compressed-layout.js';

export interface QuantizeOptions {
  readonly source: string;
  /** A folder that does not exist yet, or is empty. */
  readonly target: string;
  readonly storage: IntegerStorage;
  /** With it GPTQ, without it rounding to nearest. */
  readonly calibration?: {
    readonly backend: Backend;
    readonly sequences: readonly (readonly number[])[];
  };
  /** Names of tensors or modules to leave as they are; `*` is any text. */
  readonly ignore?: readonly string[];
  /** The share of the weights that is written, 0 to 1. */
  readonly onProgress?: (share: number) => void;
}

export interface QuantizeResult {
  /** Bytes of the weights before and after. */
  readonly bytesBefore: number;
  readonly bytesAfter: number;
  readonly quantized: number;
  readonly notes: readonly string[];
}

/** Throws `ModelError` for a source that cannot be read, `InvalidParameterError` for the rest. */
export function quantizeCheckpoint(options: QuantizeOptions): QuantizeResult {
  const { source, target, storage, calibration, onProgress } = options;
  if (!existsSync(join(source, 'config.json'))) {
    throw new ModelError(`${source}: expected a folder with config.json and safetensors`);
  }
  if (existsSync(target) && readdirSync(target).length > 0) {
    throw InvalidParameterError.expected('a folder that is empty or does not exist', 'DST', target);
  }
  if (calibration && calibration.sequences.length === 0) {
    throw new InvalidParameterError('The calibration text has no two tokens', {
      param: 'calibration',
    });
  }
  const { program, weights } = loadModel(source);
  const parts = program.weights.flatMap((weight) => weight.parts);
  requireFloats(source, parts, weights);
  const chosen = chooseTensors(program, options.ignore ?? []);
  const plan = parts.map((part) => ({ part, tensors: planPart(part, weights, chosen, storage) }));
  mkdirSync(target, { recursive: true });
  const all = plan.flatMap(({ tensors }) => tensors);
  const writer = new SafetensorsWriter(join(target, 'model.safetensors'), all);
  const total = parts.reduce((sum, { shape }) => sum + elements(shape), 0);
  let done = 0;
  const written = new Set<string>();
  const advance = ({ tensor, shape }: WeightPart) => {
    written.add(tensor);
    done += elements(shape);
    onProgress?.(done / total);
  };
  const byTensor = new Map(plan.map((entry) => [entry.part.tensor, entry]));
  const writeCoded = (tensor: string, coded: CodedMatrix): void => {
    const { part, tensors } = byTensor.get(tensor) as (typeof plan)[number];
    const data = tensorData(part.shape, storage, coded);
    tensors.forEach(({ name }, n) => {
      writer.write(name, data[n]);
    });
    advance(part);
  };
  const notes: string[] = [];
  if (calibration) {
    const wanted = (tensor: string) => chosen.has(tensor);
    const { expertMatrices, roundedExpertMatrices, roundedLinears } = calibrate({
      ...{ ...calibration, program, source: weights, storage, wanted },
      onTensor: writeCoded,
    });
    if (roundedExpertMatrices > 0) {
      notes.push(
        `${roundedExpertMatrices} of ${expertMatrices} matrices of experts are rounded to nearest: ` +
          'too few calibration tokens were routed to them',
      );
    }
    if (roundedLinears > 0) {
      notes.push(
        `${roundedLinears} matrices are rounded to nearest: their inputs on the calibration text are ` +
          'zero or not finite',
      );
    }
  }
  for (const { part } of plan) {
    if (written.has(part.tensor)) continue;
    const tensor = weights.tensor(part.tensor) as FileTensor;
    if (chosen.has(part.tensor)) {
      const [rows, width] = part.shape;
      writeCoded(part.tensor, codeMatrix(readTensor(tensor), rows, width, storage));
    } else {
      const bytes = elements(part.shape) * BYTES[tensor.dtype];
      writer.copy(part.tensor, tensor.path, tensor.offset, bytes);
      advance(part);
    }
  }
  writer.finish();
  const ignored = ignoredLinears(program, chosen);
  writeConfig(source, target, quantizationConfig(storage, ignored));
  const bytesBefore = parts.reduce((sum, { tensor, shape }) => {
    return sum + elements(shape) * BYTES[(weights.tensor(tensor) as FileTensor).dtype];
  }, 0);
  const bytesAfter = all.reduce((sum, { dtype, shape }) => {
    return sum + elements(shape) * SIZES[dtype];
  }, 0);
  return { bytesBefore, bytesAfter, quantized: chosen.size, notes };
}

const SIZES = { F32: 4, F16: 2, BF16: 2, I8: 1, I32: 4, I64: 8 } as const;
const SPELLED = { float32: 'F32', float16: 'F16', bfloat16: 'BF16' } as const;

function elements(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

function requireFloats(source: string, parts: readonly WeightPart[], weights: WeightSource): void {
  for (const { tensor } of parts) {
    if (weights.tensor(tensor).kind !== 'file') {
      throw new ModelError(
        `${source}: ${tensor} is quantized already; give the original checkpoint`,
      );
    }
  }
}

/** Tensors of linears and experts; not of routers, nor of the head, whose errors reach the logits. */
function chooseTensors(program: Program, ignore: readonly string[]): ReadonlySet<string> {
  const routers = new Set(program.ops.map((op) => (op.kind === 'moe' ? op.router.value : -1)));
  const chosen = new Set<string>();
  const patterns = ignore.map((pattern) => ({ pattern, regex: asRegex(pattern), used: false }));
  for (const op of program.ops) {
    const ids =
      op.kind === 'moe'
        ? [op.gateUp, op.down]
        : op.kind === 'linear' &&
            op.out.value !== program.logits.value &&
            !routers.has(op.out.value)
          ? [op.weight]
          : [];
    for (const { tensor } of ids.flatMap((id) => program.weights[id].parts)) {
      const module = tensor.replace(/\.weight$/, '');
      const match = patterns.find(({ regex }) => regex.test(tensor) || regex.test(module));
      if (match) match.used = true;
      else chosen.add(tensor);
    }
  }
  const idle = patterns.find(({ used }) => !used);
  if (idle) {
    throw InvalidParameterError.expected(
      `pattern of a linear (such as ${[...chosen][0]})`,
      'ignore',
      idle.pattern,
    );
  }
  return chosen;
}

function asRegex(pattern: string): RegExp {
  const parts = pattern.split('*').map((part) => part.replace(/[.+?^${}()|[\]\\]/g, '\\$&'));
  return new RegExp(`^${parts.join('.*')}$`);
}

/** Modules of linears that stay float: other readers of the format need them named. */
function ignoredLinears(program: Program, chosen: ReadonlySet<string>): string[] {
  const embedded = new Set(program.ops.map((op) => (op.kind === 'embed' ? op.weight : -1)));
  const names = program.weights
    .filter(({ shape, id }) => shape.length > 1 && !embedded.has(id))
    .flatMap(({ parts }) => parts.map(({ tensor }) => tensor))
    .filter((tensor) => !chosen.has(tensor))
    .map((tensor) => tensor.replace(/\.weight$/, ''));
  return [...new Set([...names, 'lm_head'])];
}

function planPart(
  { tensor, shape }: WeightPart,
  weights: WeightSource,
  chosen: ReadonlySet<string>,
  storage: IntegerStorage,
): PlannedTensor[] {
  if (chosen.has(tensor)) return plannedTensors(tensor.replace(/\.weight$/, ''), shape, storage);
  return [{ name: tensor, dtype: SPELLED[(weights.tensor(tensor) as FileTensor).dtype], shape }];
}

/** config.json with the scheme, and every other file that is no weight: tokenizer, template, defaults. */
function writeConfig(source: string, target: string, quantization: object): void {
  for (const name of readdirSync(source)) {
    if (/\.(json|jinja|txt|model)$/.test(name) && !/\.safetensors\.index\.json$/.test(name)) {
      copyFileSync(join(source, name), join(target, name));
    }
  }
  const config = readJsonObject(join(source, 'config.json'));
  const json = { ...config, quantization_config: quantization };
  writeFileSync(join(target, 'config.json'), `${JSON.stringify(json, null, 2)}\n`);
}
