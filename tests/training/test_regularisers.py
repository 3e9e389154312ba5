"""The defining property of each regulariser of the training loop."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import networks
from models.networks import MLP
from models.noise import Dropout
from models.records import DeltaRule, Recipe, Regularisation
from training import regularisers
from training.data import LabelledImages
from training.fit import DivergedError, Fitted, evaluate, fit


def images(count: int = 256) -> LabelledImages:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 28, 28), generator=generator, dtype=torch.uint8)
    return LabelledImages(pixels, torch.randint(0, 10, (count,), generator=generator))


def fitted(network: nn.Module, recipe: Recipe) -> Fitted:
    return fit(network, images(), images(64), recipe, prepare=lambda pixels: pixels.float() / 255)


def small() -> MLP:
    torch.manual_seed(0)
    return MLP((784, 16, 10), (0.0, 0.0))


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


class TestInputNoise:
    def test_it_is_tikhonovs_penalty_for_a_linear_model(self) -> None:
        """Bishop (1995): E[(w (x + e) - y)^2] = (w x - y)^2 + sigma^2 |w|^2."""
        torch.manual_seed(0)
        weights, inputs, deviation = torch.randn(20), torch.randn(20), 0.3
        target = inputs @ weights - 0.5
        noisy = regularisers.noisy(inputs.expand(400_000, 20), deviation)
        losses = (noisy @ weights - target).square()
        expected = (inputs @ weights - target).square() + deviation**2 * weights.square().sum()
        assert float(losses.mean()) == pytest.approx(float(expected), abs=float(5 * losses.std() / 400_000**0.5))
        assert float(losses.mean()) > 1.5 * float((inputs @ weights - target).square())

    def test_it_is_half_the_hessians_trace_to_second_order(self) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()
        inputs, label, deviation = torch.randn(6, dtype=torch.float64), torch.tensor(1), 0.05

        def loss(values: Tensor) -> Tensor:
            return F.cross_entropy(network(values), label.expand(values.shape[:-1]), reduction="none")

        # Each draw with its opposite, so that the first order cancels.
        noise = regularisers.noisy(torch.zeros(400_000, 6, dtype=torch.float64), deviation)
        with torch.no_grad():
            added = (loss(inputs + noise) + loss(inputs - noise)) / 2 - loss(inputs.unsqueeze(0))
        hessian = torch.autograd.functional.hessian(lambda values: loss(values.unsqueeze(0)).sum(), inputs)
        assert isinstance(hessian, Tensor)
        assert float(added.mean()) == pytest.approx(deviation**2 / 2 * float(hessian.trace()), rel=0.03)

    def test_its_absence_is_the_input_itself(self) -> None:
        inputs = torch.randn(3)
        assert regularisers.noisy(inputs, 0.0) is inputs


class TestActivationNoise:
    def test_it_is_added_to_the_activations_in_train_mode_alone(self) -> None:
        torch.manual_seed(0)
        network = nn.Sequential(nn.ReLU())
        zeros = torch.zeros(100_000)
        with regularisers.activation_noise(network, 0.5):
            found = network.train()(zeros)
            assert float(found.mean()) == pytest.approx(0, abs=0.01)
            assert float(found.std()) == pytest.approx(0.5, rel=0.02)
            assert torch.equal(network.eval()(zeros), zeros)
        assert torch.equal(network.train()(zeros), zeros)

    def test_a_network_without_activation_modules_is_refused(self) -> None:
        with (
            pytest.raises(ValueError, match="RowRecurrent has no activation modules"),
            regularisers.activation_noise(networks.build("RowRecurrent", seed=0), 0.1),
        ):
            pass


class TestStochasticWeights:
    def test_weights_are_drawn_about_their_means_and_come_back(self) -> None:
        torch.manual_seed(0)
        weight = torch.full((1000, 1000), 3.0)
        with regularisers.StochasticWeights([weight], DeltaRule(initial=0.2)).drawn():
            assert float(weight.mean()) == pytest.approx(3, abs=0.001)
            assert float(weight.std()) == pytest.approx(0.2, rel=0.01)
        assert torch.equal(weight, torch.full((1000, 1000), 3.0))

    def test_they_come_back_after_an_error_too(self) -> None:
        weight = torch.ones(5, 5)
        stochastic = regularisers.StochasticWeights([weight], DeltaRule())
        with pytest.raises(ZeroDivisionError), stochastic.drawn():
            raise ZeroDivisionError
        assert torch.equal(weight, torch.ones(5, 5))

    def test_deviations_follow_the_gradient(self) -> None:
        weight = torch.ones(2, 2, requires_grad=True)
        stochastic = regularisers.StochasticWeights([weight], DeltaRule(initial=0.1, rate=0.5, decay=0.8))
        slopes = torch.tensor([[1.0, -2.0], [0.0, 4.0]])
        with stochastic.drawn():
            (weight * slopes).sum().backward()
        torch.testing.assert_close(stochastic.deviations[0], 0.8 * (0.1 + 0.5 * slopes.abs()))

    def test_weight_noise_stays_as_it_is(self) -> None:
        network = small()
        (noise,) = regularisers.stochastic_weights(network, Regularisation(weight_noise=0.3))
        with noise.drawn():
            network(torch.randn(4, 784)).sum().backward()
        assert all(torch.equal(each, torch.full_like(each, 0.3)) for each in noise.deviations)

    @pytest.mark.parametrize("rate", [0.25, 0.5])
    def test_dropout_is_its_bernoulli_case(self, rate: float) -> None:
        """Weights of mean w and variance w^2 p / (1 - p), drawn together for each unit that they leave, give the next
        layer the values that dropout gives it, with the same probabilities: all eight, counted out."""
        torch.manual_seed(0)
        draws, inputs, weight = 20_000, torch.rand(3) + 0.5, torch.randn(4, 3)
        kept = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
        outcomes = (inputs * kept / (1 - rate)) @ weight.T
        probabilities = (1 - rate) ** kept.sum(1) * rate ** (1 - kept).sum(1)

        stochastic = regularisers.StochasticWeights([weight], DeltaRule(), draw=regularisers.bernoulli)
        stochastic.deviations[0].copy_(weight.abs() * (rate / (1 - rate)) ** 0.5)
        drawn = []
        for _ in range(draws):
            with stochastic.drawn():
                drawn.append(weight @ inputs)
        dropped = Dropout(rate)(inputs.expand(draws, 3)) @ weight.T
        for found in (torch.stack(drawn), dropped):
            distances, nearest = torch.cdist(found, outcomes, compute_mode="donot_use_mm_for_euclid_dist").min(1)
            assert float(distances.max()) < 1e-5
            shares = nearest.bincount(minlength=8) / draws
            deviations = (probabilities * (1 - probabilities) / draws).sqrt()
            assert torch.all((shares - probabilities).abs() < 4.5 * deviations)

    def test_bernoulli_weights_have_the_mean_and_deviation_asked_for(self) -> None:
        torch.manual_seed(0)
        mean, deviation = (
            torch.tensor([[2.0, -0.5, 0.3], [1.0, 0.2, 0.0]]),
            torch.tensor([[1.0, 0.5, 0.0], [2, 0.1, 0]]),
        )
        drawn = torch.stack([regularisers.bernoulli(mean, deviation) for _ in range(40_000)])
        torch.testing.assert_close(drawn.mean(0), mean, atol=0.05, rtol=0)
        torch.testing.assert_close(drawn.std(0), deviation, atol=0.05, rtol=0)

    def test_the_gradient_is_taken_at_the_weights_drawn(self) -> None:
        torch.manual_seed(0)
        weight = torch.ones(4, 4, requires_grad=True)
        stochastic = regularisers.StochasticWeights([weight], DeltaRule(initial=1.0))
        with stochastic.drawn():
            at = weight.detach().clone()
            weight.square().sum().backward()
        torch.testing.assert_close(weight.grad, 2 * at)
        assert not torch.allclose(at, torch.ones(4, 4))


class TestWeightDecay:
    @pytest.mark.parametrize("decoupled", [False, True])
    def test_one_step_against_the_formula(self, decoupled: bool) -> None:
        """Adam's first step is the learning rate times the gradient's sign, whatever its size."""
        network = small()
        before = state(network)
        rate, decay = 0.01, 0.5
        recipe = Recipe(
            learning_rate=rate, regularisation=Regularisation(weight_decay=decay, decoupled=decoupled)
        )  # fmt: skip
        optimizer = regularisers.optimizer_for(network, recipe)
        network(torch.randn(8, 784)).square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        optimizer.step()
        for name, parameter in network.named_parameters():
            gradient = gradients[name]
            assert gradient is not None
            own = decay if name.endswith("weight") else 0.0
            if decoupled:
                expected = before[name] * (1 - rate * own) - rate * gradient.sign()
            else:
                expected = before[name] - rate * (gradient + own * before[name]).sign()
            clear = (gradient + own * before[name]).abs() > 1e-3
            torch.testing.assert_close(parameter[clear], expected[clear], atol=1e-5, rtol=0)

    def test_weights_alone_decay(self) -> None:
        network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GRUCell(3, 5), nn.LayerNorm(5))
        found = {id(parameter) for parameter in regularisers.weights_of(network)}
        names = {name for name, parameter in network.named_parameters() if id(parameter) in found}
        assert names == {"0.weight", "2.weight_ih", "2.weight_hh"}

    def test_it_shrinks_the_weights_that_training_ends_with(self) -> None:
        norms = []
        for decay in (0.0, 0.1):
            network = small()
            fitted(network, Recipe(epochs=3, regularisation=Regularisation(weight_decay=decay)))
            norms.append(sum(float(weight.detach().norm()) for weight in regularisers.weights_of(network)))
        assert norms[1] < 0.9 * norms[0]


class TestMaxNorm:
    def test_rows_and_filters_are_shortened_and_no_others(self) -> None:
        torch.manual_seed(0)
        matrix, filters = torch.randn(6, 9), torch.randn(4, 3, 2, 2)
        short = torch.zeros(6, 9).index_fill_(1, torch.tensor([0]), 0.5)
        before = matrix.clone()
        regularisers.bound_norms([matrix, filters, short], 1.5)
        assert torch.all(matrix.norm(dim=1) <= 1.5 + 1e-5)
        assert torch.all(filters.flatten(1).norm(dim=1) <= 1.5 + 1e-5)
        torch.testing.assert_close(F.normalize(matrix), F.normalize(before))
        assert torch.equal(short[:, 0], torch.full((6,), 0.5))

    def test_training_ends_within_the_bound(self) -> None:
        network = small()
        fitted(network, Recipe(epochs=2, learning_rate=0.05, regularisation=Regularisation(max_norm=0.7)))
        longest = max(float(weight.detach().norm(dim=1).max()) for weight in regularisers.weights_of(network))
        assert longest == pytest.approx(0.7, abs=1e-4)


class TestInTraining:
    """What ``fit`` does with them."""

    @pytest.mark.parametrize(
        "regularisation",
        [
            Regularisation(weight_decay=0.1),
            Regularisation(weight_decay=0.1, decoupled=True),
            Regularisation(label_smoothing=0.2),
            Regularisation(max_norm=0.3),
            Regularisation(input_noise=0.5),
            Regularisation(activation_noise=0.5),
            Regularisation(weight_noise=0.1),
            Regularisation(delta_rule=DeltaRule()),
        ],
        ids=lambda value: "+".join(sorted(value.model_fields_set)),
    )
    def test_each_changes_the_result_and_its_seed_decides(self, regularisation: Regularisation) -> None:
        plain, first, again = small(), small(), small()
        fitted(plain, Recipe(epochs=1))
        recipe = Recipe(epochs=1, regularisation=regularisation)
        assert fitted(first, recipe).history[0].train_loss == fitted(again, recipe).history[0].train_loss
        assert all(torch.equal(first.state_dict()[name], value) for name, value in again.state_dict().items())
        assert not torch.equal(state(first)["layers.1.weight"], state(plain)["layers.1.weight"])

    def test_the_network_is_left_as_plain_as_it_was(self) -> None:
        network = small()
        everything = Regularisation(activation_noise=0.5, weight_noise=0.1, delta_rule=DeltaRule(), input_noise=0.3)
        fitted(network, Recipe(epochs=1, regularisation=everything))
        inputs = torch.randn(4, 784)
        same = small()
        same.load_state_dict(network.state_dict())
        assert torch.equal(network.train()(inputs), same(inputs))

    @pytest.mark.parametrize(
        "regularisation", [Regularisation(weight_noise=0.1), Regularisation(delta_rule=DeltaRule())]
    )
    def test_divergence_leaves_the_last_good_weights_undisturbed(self, regularisation: Regularisation) -> None:
        network = small()
        before = state(network)

        def prepare(pixels: Tensor) -> Tensor:
            values = pixels.float() / 255
            values[17] = torch.inf
            return values

        with pytest.raises(DivergedError) as caught:
            fit(network, images(), images(64), Recipe(batch_size=32, regularisation=regularisation), prepare=prepare)
        assert caught.value.fitted.history == ()
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    def test_validation_is_of_the_clean_weights(self) -> None:
        network, recipe = small(), Recipe(epochs=2, regularisation=Regularisation(weight_noise=3.0, input_noise=3.0))
        last = fitted(network, recipe).history[-1]
        part = images(64)
        assert evaluate(network, part.pixels.float() / 255, part.labels)[0] == pytest.approx(last.validation_loss)

    def test_label_smoothing_keeps_the_recorded_loss_comparable(self) -> None:
        """The first batch's loss is that of the initial weights, which smoothing does not change."""
        recipe = Recipe(epochs=1, batch_size=256)
        smoothed = recipe.model_copy(update={"regularisation": Regularisation(label_smoothing=0.5)})
        assert fitted(small(), recipe).history[0].train_loss == fitted(small(), smoothed).history[0].train_loss

    def test_label_smoothing_is_a_mixture_with_all_classes(self) -> None:
        """One step of Adam on the smoothed loss, against the same written out."""
        network, twin = small(), small()
        recipe = Recipe(epochs=1, batch_size=256, regularisation=Regularisation(label_smoothing=0.3))
        fitted(network, recipe)
        part = images()
        logs = F.log_softmax(twin(part.pixels.float() / 255), 1)
        loss = -(0.7 * logs.gather(1, part.labels.unsqueeze(1)).mean() + 0.3 * logs.mean())
        loss.backward()
        optimizer = torch.optim.Adam(twin.parameters(), lr=recipe.learning_rate)
        optimizer.step()
        for own, other in zip(network.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(own, other, atol=2e-4, rtol=0)

    def test_batch_norm_and_dropconnect_go_with_them(self) -> None:
        network = MLP((784, 16, 10), (0.2, 0.5), dropout_kind="dropconnect", batch_norm="after_dropout")
        everything = Regularisation(
            weight_decay=0.01, max_norm=2.0, label_smoothing=0.1, input_noise=0.1, activation_noise=0.1,
            weight_noise=0.01, delta_rule=DeltaRule(),
        )  # fmt: skip
        losses = [record.train_loss for record in fitted(network, Recipe(epochs=15, regularisation=everything)).history]
        assert losses[-1] < losses[0]
