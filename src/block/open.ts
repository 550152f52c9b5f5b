/** Opening an image with its backing chain, and giving it to other threads. */
import * as fs from 'node:fs';
import { ClusterLayer } from '../cluster/cluster-layer';
import { FlatLayer } from '../cluster/flat-layer';
import { BlockError, hostError } from '../errors';
import type { FormatDescription, FormatModule, ImageHeader } from '../formats/format';
import { formatByName, probeFormat } from '../formats/registry';
import { logOf } from '../log';
import { createImageState, ImageState, type ImageStateDescriptor, NEED_CHECK_CLEAR } from '../shared/image-state';
import { TableCache } from '../shared/table-cache';
import { attachStorage } from '../storage/attach';
import { FileStorage, type OpenedFile } from '../storage/file';
import { lockImage, lockRequestFor } from '../storage/image-lock';
import type { Storage, StorageDescriptor } from '../storage/storage';
import { type BackingGate, checkRawFile, type NamedFile, namingImage, resolveFileName } from './gate';
import { ImageNode } from './image-node';
import type { BlockNode } from './node';

/** Images in one chain, the top included. Our limit: QEMU has the same, and each layer costs a descriptor. */
export const CHAIN_DEPTH_MAX = 200;

export interface OpenOptions {
  readOnly: boolean;
  /** Format of the top image; probed when absent. */
  format?: string;
  /** May raw backing files lie outside the image's directory? */
  backing: BackingGate;
  /** How many threads will use the image: attachImage takes 0 … threads - 1. */
  threads: number;
  /** From createTableCache: one a mount, shared by its images. */
  cache: SharedArrayBuffer;
  /** First unused id in that cache; an image uses one for each layer of its chain. */
  imageId: number;
  /** Take QEMU's locks. */
  lock: boolean;
  /** Open read-only beside a writer (qemu-img's -U): what is read may be inconsistent. */
  forceShare?: boolean;
  /** Write beside other writers, where the top image is raw. */
  shareWrites?: boolean;
  /** Open the top image only: its backing file is not needed (`info`, `check`). */
  withoutBacking?: boolean;
}

/** One layer as plain data; structured-cloneable. */
interface LayerDescriptor {
  storage: StorageDescriptor;
  /** External data file. */
  data?: StorageDescriptor;
  header: ImageHeader;
  state: ImageStateDescriptor;
  imageId: number;
}

/** What another thread needs to use an opened image; structured-cloneable. Top layer first. */
export interface ImageDescriptor {
  layers: LayerDescriptor[];
  cache: SharedArrayBuffer;
}

export interface OpenImage {
  /** This thread's top node; `node.backing` is the next layer. */
  readonly node: BlockNode;
  readonly nextImageId: number;
  describe(): ImageDescriptor;
  /**
   * Call it when no other thread uses the image. Final flush, dirty bit cleared, locks released, descriptors closed. Throws a
   * BlockError when the final flush failed; everything is released all the same.
   */
  close(): void;
}

const log = logOf('block');

/** Opens the image and its chain: all of it or nothing. Called in the main thread. */
export function openImage(path: string, options: OpenOptions): OpenImage {
  const layers: LayerDescriptor[] = [];
  const storages: FileStorage[] = [];
  try {
    openChain(path, options, layers, storages);
  } catch (error) {
    for (const storage of storages) storage.close();
    throw error;
  }
  const descriptor: ImageDescriptor = { layers, cache: options.cache };
  return openedImage(descriptor, storages, options.imageId + layers.length);
}

/** This thread's nodes over an image that the main thread opened. */
export function attachImage(descriptor: ImageDescriptor, thread: number): BlockNode {
  return attachChain(descriptor, thread, attachStorage);
}

/** As `attachImage` with storages of the caller's choice: tests put failing ones in between. */
export function attachChain(
  descriptor: ImageDescriptor,
  thread: number,
  attach: (descriptor: StorageDescriptor) => Storage,
): ImageNode {
  const cache = new TableCache(descriptor.cache);
  let below: ImageNode | undefined;
  for (let i = descriptor.layers.length - 1; i >= 0; i--) {
    const { storage: storageDescriptor, data: dataDescriptor, header, state, imageId } = descriptor.layers[i];
    const storage = attach(storageDescriptor);
    const data = dataDescriptor === undefined ? undefined : attach(dataDescriptor);
    const module = formatByName(header.format);
    const driver = module.attach(header, storage, new ImageState(state, thread), cache, imageId, data);
    const layer = driver.capabilities.clusters
      ? new ClusterLayer(driver, cache, imageId, below)
      : new FlatLayer(driver);
    below = new ImageNode(header, storage, layer, below, data);
  }
  if (below === undefined) throw new Error('an image has at least one layer');
  return below;
}

/** The flusher's work on one image: timed flushes, the dirty bit. Never throws: the next fsync tells what went wrong. */
export function maintain(node: BlockNode, nowMs: number): void {
  try {
    asImage(node).layer.maintain(nowMs);
  } catch (error) {
    log('%s: timed flush failed: %s', node.path, error);
  }
}

/** What the header says, with the dirty bit as it is now. */
export function imageHeaderOf(node: BlockNode): ImageHeader {
  const image = asImage(node);
  if (image.readOnly) return image.header;
  return { ...image.header, dirty: image.layer.state.needCheck !== NEED_CHECK_CLEAR };
}

/** What the format of the node's image has to say beside its header. */
export function descriptionOf(node: BlockNode): FormatDescription {
  const { header, storage, layer } = asImage(node);
  return formatByName(header.format).describe?.(header, storage, layer.state) ?? {};
}

/** Reads the header of an image without its backing chain: changes nothing, takes no lock. */
export function probeImage(
  storage: Storage,
  format?: string,
): { module: FormatModule; header: ImageHeader; probed: boolean } {
  const module = format === undefined ? probeFormat(storage) : formatByName(format);
  return { module, header: module.readHeader(storage), probed: format === undefined };
}

function asImage(node: BlockNode): ImageNode {
  if (!(node instanceof ImageNode)) throw new Error(`"${node.path}" is not an image node`);
  return node;
}

/** An image to open; `overlay` names it as its backing file. */
interface NamedLayer {
  path: string;
  format?: string;
  overlay?: FileStorage;
}

function openChain(path: string, options: OpenOptions, layers: LayerDescriptor[], storages: FileStorage[]): void {
  const seen = new Map<string, string>();
  let next: NamedLayer | undefined = { path, format: options.format };
  while (next !== undefined) {
    const current: NamedLayer = next;
    if (layers.length === CHAIN_DEPTH_MAX) {
      throw new BlockError(
        'LIMIT_EXCEEDED',
        `Cannot open "${path}": its backing chain has more than ${CHAIN_DEPTH_MAX} images`,
        { path },
      );
    }
    const readOnly = options.readOnly || layers.length > 0;
    const storage = openLayerFile(current, readOnly, options.backing);
    storages.push(storage);
    refuseLoop(storage, current.overlay?.path, seen);
    const { module, header } = openHeader(storage, current, readOnly, options);
    const data = openDataFile(storage, header, readOnly, options);
    if (data !== undefined) {
      storages.push(data);
      refuseLoop(data, current.path, seen);
      lockLayer(data, module.name, readOnly, options);
    }
    if (!readOnly) module.prepareWrite?.(header, storage);
    const state = createImageState(options.threads, !readOnly);
    module.initState(header, storage, new ImageState(state, 0));
    layers.push({
      storage: storage.describe(),
      ...(data === undefined ? {} : { data: data.describe() }),
      header,
      state,
      imageId: options.imageId + layers.length,
    });
    next =
      header.backing === undefined || options.withoutBacking === true
        ? undefined
        : {
            path: resolveFileName('backing file', current.path, header.backing.name),
            format: header.backing.format,
            overlay: storage,
          };
  }
}

/** Recognises the image, judges it and takes its lock. */
function openHeader(
  storage: FileStorage,
  { format, overlay }: NamedLayer,
  readOnly: boolean,
  options: OpenOptions,
): { module: FormatModule; header: ImageHeader } {
  const found = probeImage(storage, format);
  lockLayer(storage, found.module.name, readOnly, options);
  // Whoever had the lock before may have changed it since: into another format, even.
  const { module, header, probed } = probeImage(storage, format);
  if (module.name !== found.module.name) {
    throw new BlockError('BUSY', `Cannot open "${storage.path}": it became ${module.name} while it was opened`, {
      path: storage.path,
    });
  }
  // With a word for its format it was judged before it was opened.
  if (overlay !== undefined && module.name === 'raw' && probed)
    checkRawFile('backing file', namingImage(overlay), storage, options.backing);
  if (probed) header.probed = true;
  if (options.forceShare === true) header.shared = true;
  return { module, header };
}

function lockLayer(storage: FileStorage, format: string, readOnly: boolean, options: OpenOptions): void {
  if (!options.lock) return;
  const share = (readOnly ? options.forceShare : options.shareWrites) === true;
  lockImage(storage.fd, storage.path, lockRequestFor({ readOnly, share }, format));
}

/** The external file with the guest data, if the image has one; not needed where the backing file is not. */
function openDataFile(
  image: FileStorage,
  header: ImageHeader,
  readOnly: boolean,
  options: OpenOptions,
): FileStorage | undefined {
  if (header.dataFile === undefined || options.withoutBacking === true) return undefined;
  const { path } = image;
  const dataPath = resolveFileName('data file', path, header.dataFile.name);
  const admit = (file: OpenedFile): void => checkRawFile('data file', namingImage(image), file, options.backing);
  try {
    return FileStorage.open(dataPath, { readOnly, admit });
  } catch (error) {
    throw errorOfNamed('data file', path, error);
  }
}

function openLayerFile({ path, format, overlay }: NamedLayer, readOnly: boolean, gate: BackingGate): FileStorage {
  if (overlay === undefined) return FileStorage.open(path, { readOnly });
  const admit = (file: OpenedFile): void => {
    if (format === 'raw') checkRawFile('backing file', namingImage(overlay), file, gate);
  };
  try {
    return FileStorage.open(path, { readOnly, admit });
  } catch (error) {
    throw errorOfNamed('backing file', overlay.path, error);
  }
}

/** Says whose file it is. The gate does so itself. */
function errorOfNamed(what: NamedFile, image: string, error: unknown): unknown {
  if (!(error instanceof BlockError) || (error.code === 'DENIED' && error.cause === undefined)) return error;
  const { code, path, cause } = error;
  return new BlockError(code, `Cannot open the ${what} of "${image}": ${error.message}`, { path, cause });
}

/** The same file twice in one chain is a loop, by whatever names. */
function refuseLoop(storage: FileStorage, overlay: string | undefined, seen: Map<string, string>): void {
  let key: string;
  try {
    const stat = fs.fstatSync(storage.fd, { bigint: true });
    key = `${stat.dev}:${stat.ino}`;
  } catch (error) {
    throw hostError(error, `Cannot open "${storage.path}"`, { path: storage.path });
  }
  const before = seen.get(key);
  if (before !== undefined) {
    throw new BlockError(
      'INVALID_FORMAT',
      `Cannot open "${before}": its backing chain is a loop, "${overlay}" names "${storage.path}" again`,
      {
        path: storage.path,
      },
    );
  }
  seen.set(key, storage.path);
}

function openedImage(descriptor: ImageDescriptor, storages: FileStorage[], nextImageId: number): OpenImage {
  const node = attachChain(descriptor, 0, attachStorage);
  let closed = false;
  return {
    node,
    nextImageId,
    describe: () => descriptor,
    close() {
      // Descriptors are numbers: a second close would close somebody else's file.
      if (closed) return;
      closed = true;
      try {
        node.layer.finish();
      } finally {
        const cache = new TableCache(descriptor.cache);
        for (const { imageId } of descriptor.layers) cache.forget(imageId);
        for (const storage of storages) {
          try {
            storage.close();
          } catch (error) {
            // Flushed above, and the descriptor is gone either way.
            log('closing %s: %s', storage.path, error);
          }
        }
      }
    },
  };
}
