/** Images for tests of the engine: real files, and chains in shared memory that take any storage in between. */
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import type { ExecutionContext } from 'ava';
import type { ImageNode } from '../../src/block/image-node';
import { attachChain, type ImageDescriptor, type OpenImage, type OpenOptions, openImage } from '../../src/block/open';
import type { CheckResult, CreateOptions } from '../../src/formats/format';
import { formatByName, probeFormat } from '../../src/formats/registry';
import { createImageState, ImageState } from '../../src/shared/image-state';
import { createTableCache, TABLE_CACHE_MIN_BYTES } from '../../src/shared/table-cache';
import { attachStorage } from '../../src/storage/attach';
import { FileStorage } from '../../src/storage/file';
import { MemoryStorage } from '../../src/storage/memory';
import type { Storage, StorageDescriptor } from '../../src/storage/storage';
import { checkQcowTables } from './qcow-tables';

export function temporaryDirectory(t: ExecutionContext): string {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'imagefs-'));
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }));
  return directory;
}

export interface ImageSpec extends CreateOptions {
  format: 'qcow' | 'qcow2' | 'qed' | 'raw';
}

export function createImage(file: string, spec: ImageSpec): void {
  const storage = FileStorage.create(file);
  try {
    formatByName(spec.format).create?.(storage, spec);
  } finally {
    storage.close();
  }
}

/** Opens with what most tests want: read-write, the smallest cache, any backing file, locked. */
export function open(file: string, options: Partial<OpenOptions> = {}): OpenImage {
  return openImage(file, {
    readOnly: false,
    backing: 'any',
    threads: 4,
    cache: createTableCache(TABLE_CACHE_MIN_BYTES),
    imageId: 1,
    lock: true,
    ...options,
  });
}

export function checkFile(file: string): CheckResult {
  const storage = FileStorage.open(file, { readOnly: true });
  try {
    return checkStorage(storage);
  } finally {
    storage.close();
  }
}

/** `imagefs check -r`. @returns what is left */
export function repairFile(file: string, mode: 'leaks' | 'all'): CheckResult {
  const storage = FileStorage.open(file, { readOnly: false });
  try {
    const module = probeFormat(storage);
    if (module.check === undefined) throw new Error(`${module.name} has no check`);
    return module.check(module.readHeader(storage), storage, mode);
  } finally {
    storage.close();
  }
}

/** Our own check, changing nothing; of qcow, which has none, a walk over its tables. Raw images are sound. */
export function checkStorage(storage: Storage): CheckResult {
  const module = probeFormat(storage);
  if (module.name === 'qcow') return checkQcowTables(storage);
  const sound = { checkErrors: 0, corruptions: 0, leaks: 0, messages: [] as string[] } as unknown as CheckResult;
  return module.check?.(module.readHeader(storage), storage, 'none') ?? sound;
}

export function createInMemory(spec: ImageSpec, capacity: number, data?: MemoryStorage): MemoryStorage {
  const storage = MemoryStorage.create(capacity, `memory.${spec.format}`);
  formatByName(spec.format).create?.(storage, spec, data);
  return storage;
}

/** Puts another storage in front of the top image's files; the lower layers stay as they are. */
export type Wrap = (storage: Storage) => Storage;

export interface OpenedChain {
  node: ImageNode;
  descriptor: ImageDescriptor;
  /** Nodes of another thread over the same image. */
  attach(thread: number, wrap?: Wrap): ImageNode;
  /** Final flush, bit off. */
  finish(): void;
}

/**
 * Opens storages as one chain, top first, without files and locks.
 * @param options `data`: external data file of the top image; `wrap` sees it too
 */
export function openChainOf(
  storages: Storage[],
  options: { readOnly?: boolean; threads?: number; wrap?: Wrap; cacheBytes?: number; data?: Storage } = {},
): OpenedChain {
  const wrap = options.wrap ?? ((storage: Storage) => storage);
  const layers: ImageDescriptor['layers'] = storages.map((storage, index) => {
    const readOnly = options.readOnly === true || index > 0;
    const module = probeFormat(storage);
    const header = module.readHeader(storage);
    if (!readOnly) module.prepareWrite?.(header, wrap(storage));
    const state = createImageState(options.threads ?? 4, !readOnly);
    module.initState(header, storage, new ImageState(state, 0));
    const data = index === 0 ? options.data : undefined;
    return {
      storage: { ...storage.describe(), readOnly },
      ...(data === undefined ? {} : { data: { ...data.describe(), readOnly } }),
      header,
      state,
      imageId: 1 + index,
    };
  });
  const descriptor: ImageDescriptor = { layers, cache: createTableCache(options.cacheBytes ?? TABLE_CACHE_MIN_BYTES) };
  const attach = (thread: number, own: Wrap = wrap) =>
    attachChain(descriptor, thread, (layer: StorageDescriptor) =>
      layer.readOnly ? attachStorage(layer) : own(attachStorage(layer)),
    );
  const node = attach(0);
  return { node, descriptor, attach, finish: () => node.layer.finish() };
}

/** True when the program is there; otherwise the test passes with a remark, or fails where everything is required. */
export function have(t: ExecutionContext, program: string): boolean {
  try {
    execFileSync(program, ['--version'], { stdio: 'ignore' });
    return true;
  } catch {
    return cannotRun(t, `${program} is not installed`);
  }
}

/** Remarks why a test cannot run here, and fails it where everything is required. */
export function cannotRun(t: ExecutionContext, reason: string): false {
  t.log(`cannot run here: ${reason}`);
  if (process.env.IMAGEFS_REQUIRE_ALL === '1') t.fail(reason);
  else t.pass();
  return false;
}
