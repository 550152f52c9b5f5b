/** What there is to know about an image, in the words of `qemu-img info`: virtual file `info.json` and the command line. */
import { visible } from '../errors';
import type { FormatDescription, ImageHeader, SnapshotInfo } from '../formats/format';
import { humanSize } from '../units';
import { protocolOf } from './gate';
import { snapshotLines, specificLines } from './info-text';
import type { BlockNode } from './node';
import { descriptionOf, imageHeaderOf } from './open';

/** Field names and their order are those of `qemu-img info --output=json`. */
export interface ImageInfo {
  'backing-filename-format'?: string;
  snapshots?: SnapshotInfo[];
  'virtual-size': number;
  filename: string;
  'cluster-size'?: number;
  format: string;
  'actual-size': number;
  'format-specific'?: FormatDescription['specific'];
  'full-backing-filename'?: string;
  'backing-filename'?: string;
  'dirty-flag': boolean;
  /** Ours: opened beside somebody who may write, so that what is shown need not fit together. Otherwise absent. */
  consistent?: false;
}

/** What `info` is made from. */
export interface InfoSource {
  path: string;
  header: ImageHeader;
  /** Bytes, now: an open disk may have grown. */
  virtualSize: number;
  /** Bytes that the host keeps for the file. */
  actualSize: number;
  /** What the format has to say. */
  description?: FormatDescription;
}

/** The information about the top layer of `node`. */
export function imageInfo(node: BlockNode): ImageInfo {
  const header = imageHeaderOf(node);
  const description = descriptionOf(node);
  const actualSize = node.allocatedBytes();
  return infoOf({ path: node.path, header, virtualSize: node.size(), actualSize, description });
}

/** The same for an image of which only the header was read: its backing file may be missing. */
export function infoOf(source: InfoSource): ImageInfo {
  const { header, path } = source;
  const { backing } = header;
  const { snapshots, specific } = source.description ?? {};
  return {
    ...(backing?.format === undefined ? {} : { 'backing-filename-format': backing.format }),
    ...(snapshots === undefined ? {} : { snapshots }),
    'virtual-size': source.virtualSize,
    filename: path,
    ...(header.clusterSize === 0 ? {} : { 'cluster-size': header.clusterSize }),
    format: header.format,
    'actual-size': source.actualSize,
    ...(specific === undefined ? {} : { 'format-specific': specific }),
    ...(backing === undefined
      ? {}
      : { 'full-backing-filename': backingPath(path, backing.name), 'backing-filename': backing.name }),
    'dirty-flag': header.dirty,
    ...(header.shared === true ? { consistent: false } : {}),
  };
}

/**
 * Where a backing file is: a relative name counts from the directory of the image that names it. The text is put together
 * and not normalised, as qemu-img shows it: `sub/../base.qed`. A protocol name is no path, and shown as it is.
 */
export function backingPath(imagePath: string, name: string): string {
  if (protocolOf(name) !== undefined) return name;
  return name.startsWith('/') ? name : imagePath.slice(0, imagePath.lastIndexOf('/') + 1) + name;
}

/** The lines of `qemu-img info`. */
export function infoText(info: ImageInfo): string {
  const lines = [
    `image: ${info.filename}`,
    `file format: ${info.format}`,
    `virtual size: ${humanSize(info['virtual-size'])} (${info['virtual-size']} bytes)`,
    `disk size: ${humanSize(info['actual-size'])}`,
  ];
  if (info['cluster-size'] !== undefined) lines.push(`cluster_size: ${info['cluster-size']}`);
  if (info['dirty-flag']) lines.push('cleanly shut down: no');
  const name = info['backing-filename'];
  const full = info['full-backing-filename'];
  if (name !== undefined) {
    lines.push(visible(`backing file: ${name}${full === name ? '' : ` (actual path: ${full})`}`));
  }
  if (info['backing-filename-format'] !== undefined)
    lines.push(visible(`backing file format: ${info['backing-filename-format']}`));
  if (info.snapshots !== undefined) lines.push('Snapshot list:', ...snapshotLines(info.snapshots));
  const specific = info['format-specific'];
  if (specific !== undefined) lines.push('Format specific information:', ...specificLines(specific.data));
  return `${lines.join('\n')}\n`;
}
