/**
 * Which files a mount shows: a pure function of data about the opened images. The main thread computes the plan once; it is
 * structured-cloneable, and each worker thread builds its file system from it (`image-filesystem.ts`), so all agree on inode numbers.
 *
 *   one image            several images, or a directory of images
 *   /disk                /a.qed/disk ...
 *   /info.json           /b.raw/disk ...
 *   /map.json            /broken.qed/error.json
 *   /stats.json
 *   /layers/0-vm.qed/{disk,info.json,map.json}
 *   /snapshots/NAME/{disk,info.json,map.json,vmstate}
 *
 * A *view* is one shape, a folder with `disk`, `info.json` and `map.json`, made by `viewFiles` from a reference to a node. The live disk,
 * every layer and every snapshot are views.
 *
 * An inode number is an index into `TreePlan.files`; 1 is the root, as the kernel wants it, 0 is nobody. Snapshots come and go: their
 * numbers lie behind those of the plan (`snapshot-tree.ts`).
 */
import * as assert from 'node:assert';
import * as path from 'node:path';
import { cutToBytes, NAME_MAX_BYTES, safeName, UniqueNames } from './names';
import { SnapshotSlots } from './snapshot-slots';
import type { SnapshotInfo } from './snapshot-source';

export const ROOT_INO = 1;

/** One image file of a chain: the image itself or a backing file. */
export interface TreeLayer {
  /** Absolute: the process may have changed its directory since. */
  path: string;
  format: string;
  readOnly: boolean;
  /** Of the image file and its data file (`modeOfFiles`); only the permission bits count. */
  mode: number;
  /** st_mtime of the image file at open, milliseconds since the epoch. */
  mtimeMs: number;
}

/** `layers[0]` is the image, the rest its backing files in order; never empty. */
export interface OpenedTreeImage {
  name: string;
  layers: TreeLayer[];
  /** Its format has internal snapshots: there is a folder for them, even when it is empty. */
  snapshots?: boolean;
}

/** An image that could not be opened: its folder shows why. */
export interface BrokenTreeImage {
  name: string;
  error: { code: string; message: string };
}

export type TreeImage = OpenedTreeImage | BrokenTreeImage;

export interface TreeOptions {
  /** The user named one image: its view is the root. A directory of images gives folders even when it holds one image. */
  singleImage: boolean;
  /** Milliseconds since the epoch: the time that folders show. */
  mountedMs: number;
}

/** A block node of this mount, by number: the image, and how far down its chain. */
export interface NodeReference {
  image: number;
  layer: number;
}

export type TextPlan =
  | { of: 'info' | 'chain-map' | 'layer-map' | 'stats'; node: NodeReference }
  | { of: 'snapshot-info'; node: NodeReference; snapshot: SnapshotInfo }
  | { of: 'error'; filename: string; code: string; message: string };

export type FilePlan =
  | { kind: 'directory'; mode: number; clock: number; children: { name: string; ino: number }[] }
  | { kind: 'disk'; mode: number; clock: number; node: NodeReference; writable: boolean }
  | { kind: 'text'; mode: number; clock: number; text: TextPlan }
  | SnapshotsPlan;

/** The folder of an image's snapshots. */
export interface SnapshotsPlan {
  kind: 'snapshots';
  mode: number;
  image: number;
  /** Modes of a snapshot's folder and of its files. */
  viewMode: number;
  fileMode: number;
  /** See `SnapshotSlots`. */
  slots: SharedArrayBuffer;
}

export interface TreePlan {
  /** By inode number. Index 0 is unused. */
  files: (FilePlan | undefined)[];
  /** A path whose host file system `df` tells about; absent when no image opened. */
  hostPath?: string;
  /** State of all threads: see `TreeState`. */
  state: SharedArrayBuffer;
}

const STATE_HEADER_BYTES = 8;

/**
 * What the threads of a mount share, beside the nodes: the number of open text files, the last serial number of a snapshot, and for
 * each clock the time of the last change. Clock 0 stands at the time of the mount, clock 1 + i belongs to image i.
 *
 * Times are plain stores to aligned doubles: two threads that write at the same moment leave one of the two times, both right.
 */
export class TreeState {
  readonly openTexts: Int32Array;
  /** One word: the last serial number that a snapshot of any image got. */
  readonly lastSerial: Int32Array;
  readonly times: Float64Array;

  constructor(buffer: SharedArrayBuffer) {
    this.openTexts = new Int32Array(buffer, 0, 1);
    this.lastSerial = new Int32Array(buffer, 4, 1);
    this.times = new Float64Array(buffer, STATE_HEADER_BYTES);
  }

  static create(clocks: number): SharedArrayBuffer {
    return new SharedArrayBuffer(STATE_HEADER_BYTES + clocks * Float64Array.BYTES_PER_ELEMENT);
  }
}

/** The owner may always read and write as far as modes go, so that opening a layer for writing says EROFS, not EACCES. */
const OWNER_FILE = 0o600;
const OWNER_DIRECTORY = 0o700;
const READ_BITS = 0o444;
const FILE_BITS = 0o666;

/**
 * Who may read a view must have been allowed to read all image files that it shows: the read bits of the layer and of those below it,
 * intersected. Write bits are those of the layer's own file.
 */
export function viewMode(layers: readonly TreeLayer[], layer: number): number {
  let readable = READ_BITS;
  for (const { mode } of layers.slice(layer)) readable &= mode;
  const own = (layers[layer]?.mode ?? 0) & FILE_BITS;
  return (own & ~READ_BITS) | readable | OWNER_FILE;
}

/**
 * Permission bits that a layer made of these host files has in a mount: nobody gets more than every one of them grants.
 * @param gid of the mount's files. Where it is not the group of the host file, members of both groups get what everybody gets.
 */
export function modeOfFiles(files: readonly { mode: number; gid: number }[], gid: number): number {
  let granted = 0o777;
  for (const file of files) {
    const everybody = file.mode & (file.mode >> 3) & 0o7;
    granted &= file.gid === gid ? file.mode : (file.mode & 0o700) | (everybody << 3) | everybody;
  }
  return granted;
}

/** A folder may be listed and entered by those who may read something in it. */
function directoryMode(fileModes: number): number {
  const readable = fileModes & READ_BITS;
  return OWNER_DIRECTORY | readable | (readable >> 2);
}

class TreeBuilder {
  readonly files: (FilePlan | undefined)[] = [undefined];

  addDirectory(parent: number | undefined, name: string, mode: number, clock: number): number {
    const ino = this.files.length;
    this.files.push({ kind: 'directory', mode, clock, children: [] });
    if (parent !== undefined) this.link(parent, name, ino);
    return ino;
  }

  /** A file, or a folder whose content is not planned. */
  addFile(parent: number, name: string, file: Exclude<FilePlan, { kind: 'directory' }>): void {
    const ino = this.files.length;
    this.files.push(file);
    this.link(parent, name, ino);
  }

  private link(parent: number, name: string, ino: number): void {
    const directory = this.files[parent];
    assert.ok(directory?.kind === 'directory', 'a parent is a directory');
    directory.children.push({ name, ino });
  }
}

interface View {
  node: NodeReference;
  mode: number;
  clock: number;
  writable: boolean;
  /** `map.json` tells of the whole chain below the view, or of this layer alone. */
  map: 'chain-map' | 'layer-map';
  /** The view is this snapshot's. */
  snapshot?: SnapshotInfo;
}

interface ViewFile {
  name: string;
  file: Extract<FilePlan, { kind: 'disk' | 'text' }>;
}

/** What is in the folder of a view. */
export function viewFiles(view: View): ViewFile[] {
  const { node, mode, clock, writable, snapshot } = view;
  const info: TextPlan = snapshot === undefined ? { of: 'info', node } : { of: 'snapshot-info', node, snapshot };
  return [
    { name: 'disk', file: { kind: 'disk', mode, clock, node, writable } },
    { name: 'info.json', file: { kind: 'text', mode, clock, text: info } },
    { name: 'map.json', file: { kind: 'text', mode, clock, text: { of: view.map, node } } },
  ];
}

function addView(builder: TreeBuilder, directory: number, view: View): void {
  for (const { name, file } of viewFiles(view)) builder.addFile(directory, name, file);
}

function addImage(
  builder: TreeBuilder,
  directory: number,
  { layers, snapshots }: OpenedTreeImage,
  image: number,
  mountedMs: number,
): void {
  const clock = clockOf(image);
  const mode = viewMode(layers, 0);
  const node = { image, layer: 0 };
  addView(builder, directory, { node, mode, clock, writable: layers[0]?.readOnly === false, map: 'chain-map' });
  builder.addFile(directory, 'stats.json', { kind: 'text', mode, clock, text: { of: 'stats', node } });

  const modes = layers.map((_, layer) => viewMode(layers, layer));
  const folder = builder.addDirectory(directory, 'layers', directoryMode(union(modes)), 0);
  layers.forEach((layer, index) => {
    const layerMode = modes[index] ?? OWNER_FILE;
    const layerFolder = builder.addDirectory(folder, layerName(layer.path, index), directoryMode(layerMode), 0);
    const view: View = { node: { image, layer: index }, mode: layerMode, clock, writable: false, map: 'layer-map' };
    addView(builder, layerFolder, view);
  });
  if (snapshots === true) {
    const folderMode = directoryMode(mode);
    const slots = SnapshotSlots.create(mountedMs);
    const plan: SnapshotsPlan = {
      kind: 'snapshots',
      mode: folderMode,
      image,
      viewMode: folderMode,
      fileMode: mode,
      slots,
    };
    builder.addFile(directory, 'snapshots', plan);
  }
}

function addBroken(builder: TreeBuilder, directory: number, image: BrokenTreeImage): void {
  const { code, message } = image.error;
  const text: TextPlan = { of: 'error', filename: image.name, code, message };
  builder.addFile(directory, 'error.json', { kind: 'text', mode: OWNER_FILE, clock: 0, text });
}

function union(modes: readonly number[]): number {
  return modes.reduce((all, mode) => all | mode, 0);
}

/** Which of `TreeState.times` is an image's. */
export function clockOf(image: number): number {
  return 1 + image;
}

/** `0-vm.qed`: unique through its number, which also keeps it from being `.` or `..`. */
function layerName(imagePath: string, index: number): string {
  return cutToBytes(`${index}-${safeName(path.basename(imagePath), 'image')}`, NAME_MAX_BYTES);
}

/** Permission bits of everything that an image's folder shows. */
function imageMode(image: TreeImage): number {
  if ('error' in image) return OWNER_FILE;
  return union(image.layers.map((_, layer) => viewMode(image.layers, layer)));
}

/** Decides every name, inode number and mode of a mount. Depends on nothing but its arguments. */
export function buildTree(images: readonly TreeImage[], options: TreeOptions): TreePlan {
  assert.ok(!options.singleImage || images.length === 1, 'a single image is one image');
  for (const image of images) assert.ok('error' in image || image.layers.length > 0, 'an image has at least one layer');

  const builder = new TreeBuilder();
  const root = builder.addDirectory(undefined, '', directoryMode(union(images.map(imageMode))), 0);
  assert.strictEqual(root, ROOT_INO);
  const names = new UniqueNames();
  images.forEach((image, index) => {
    const folder = options.singleImage
      ? root
      : builder.addDirectory(root, names.take(safeName(image.name, 'image')), directoryMode(imageMode(image)), 0);
    if ('error' in image) addBroken(builder, folder, image);
    else addImage(builder, folder, image, index, options.mountedMs);
  });

  const state = TreeState.create(1 + images.length);
  const { times } = new TreeState(state);
  times.fill(options.mountedMs);
  images.forEach((image, index) => {
    if ('layers' in image) times[clockOf(index)] = image.layers[0]?.mtimeMs ?? options.mountedMs;
  });

  const hostPath = images.flatMap((image) => ('layers' in image ? image.layers.slice(0, 1) : []))[0]?.path;
  return { files: builder.files, state, ...(hostPath === undefined ? {} : { hostPath }) };
}
