"""Other people's hands, as `HandParams` and `TwoHands`, and back.

One file per foreign form; each says what that form is. All of them are small differentiable functions of tensors of any
batch shape, on any device: put one between an estimator and `sds_loss`, and the gradient reaches the estimator's own
output.

    pair = hamer_to_hands(out["pred_mano_params"], cam_t, batch["right"], image=index, num_images=8, hands=mano)
    loss = task_loss + sds_loss(prior, pair.left, pair.right,
                                left_valid=pair.left_valid, right_valid=pair.right_valid, hands=pair.hands)

| form | there | back |
|---|---|---|
| HaMeR, WiLoR: matrices, mirrored left hands | `hamer_to_hands` | `hands_to_hamer` |
| the same networks' camera of a crop | `crop_to_full` | `full_to_crop` |
| InterWild: offsets, root-relative hands and `rel_trans` | `interwild_to_hands` | `hands_to_interwild` |
| IntagHand: 45 PCA coefficients, root matrix | `intaghand_to_hands` | `hands_to_intaghand` |
| SMPL-X: wrists at the end of the body's chain | `smplx_to_hands` | `hands_to_smplx` |
| ARCTIC: offsets, released left shapedirs | `arctic_to_hands`, `refit_left` | `hands_to_arctic` |
| InterHand2.6M: offsets, hands that are null, cameras in mm | `interhand26m_to_hands` | `hands_to_interhand26m` |
| a finger pose alone: PCA or not, flat mean or not | `PoseForm.to_pose` | `PoseForm.from_pose` |
| hands one by one, some missing | `pair_of`, `of_detections` | `hand_or_none` |
| another frame, say a camera's | `moved` | `moved` |

Poses come out absolute and wrapped to at most pi. Half precision is raised to float32. A missing hand is marked in
`left_valid`, `right_valid`; its numbers mean nothing. Where a mean pose, PCA components or the wrist's place are
needed, they are those of the hand models that are passed: annotations made with MANO need MANO.
"""

from __future__ import annotations

from .arctic import arctic_to_hands, hands_to_arctic, refit_left, with_released_left
from .hamer import HaMeRHands, crop_to_full, demo_focal_length, full_to_crop, hamer_to_hands, hands_to_hamer
from .intaghand import hands_to_intaghand, intaghand_to_hands
from .interhand26m import hands_to_interhand26m, interhand26m_camera, interhand26m_to_hands
from .interwild import hands_to_interwild, interwild_to_hands
from .pairs import hand_or_none, moved, moved_hand, of_detections, pair_of
from .poses import PoseForm, matrices_to_pose, pose_to_matrices, wrapped
from .smplx_body import SMPLXHands, hands_to_smplx, smplx_to_hands, wrist_rotations

__all__ = [
    "HaMeRHands",
    "PoseForm",
    "SMPLXHands",
    "arctic_to_hands",
    "crop_to_full",
    "demo_focal_length",
    "full_to_crop",
    "hamer_to_hands",
    "hand_or_none",
    "hands_to_arctic",
    "hands_to_hamer",
    "hands_to_intaghand",
    "hands_to_interhand26m",
    "hands_to_interwild",
    "hands_to_smplx",
    "intaghand_to_hands",
    "interhand26m_camera",
    "interhand26m_to_hands",
    "interwild_to_hands",
    "matrices_to_pose",
    "moved",
    "moved_hand",
    "of_detections",
    "pair_of",
    "pose_to_matrices",
    "refit_left",
    "smplx_to_hands",
    "with_released_left",
    "wrapped",
    "wrist_rotations",
]
